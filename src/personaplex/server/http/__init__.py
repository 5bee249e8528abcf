"""What is asked for and answered once: OpenAI's audio endpoints, the seeds' chat, `respond`, the history, the docs.

`routes.py` puts the parts together. Each is a module with a `router(service)`; what they share is how a body is bounded
(`bodies.py`) and how sound becomes a file that is sent while it is made (`sound.py`).
"""
