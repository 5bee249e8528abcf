"""Reports for people: conversations drawn on their time line, results of evaluations, and what differs between two.

`sources.py` reads files, `run.py` makes conversations with a model, `speech.py` finds who spoke when, `summary.py`
counts, `page.py` draws, `comparison.py` says whether a difference is more than noise.
"""
