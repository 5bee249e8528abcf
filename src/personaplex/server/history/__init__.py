"""What was said, kept: in memory until the server ends, or in a database that outlives it.

`store.History` is what the rest of the server knows. Every kind of session writes into it through a `Transcript`, which
never waits; `tables.py` is where and how it lies.
"""
