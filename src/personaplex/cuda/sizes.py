"""Sizes that a kernel reads, so that one built kernel serves every layer."""

from __future__ import annotations

from functools import cache

import mlx.core as mx


@cache
def on_card(*sizes: int) -> mx.array:
    """The numbers as int32, one array for all calls; computed on the card, so that they lie there."""
    numbers = mx.abs(mx.array(sizes, mx.int32))
    # Now, or a compiled step would compute it again in every call.
    mx.eval(numbers)
    return numbers
