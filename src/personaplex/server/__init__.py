"""The server: every client that exists can call it. What it speaks is above the seam; no part of it touches MLX.

`service.py` is what all routes share and knows no HTTP; `app.py` puts the routes together; each protocol has a module
or a folder of its own.
"""
