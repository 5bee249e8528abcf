"""A model that is broken on purpose: the rows of every weight matrix of its language model in another order."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from personaplex.model import PersonaPlex


def break_model(model: PersonaPlex, seed: int = 0) -> PersonaPlex:
    """Shuffle the weights of `model`, which is of no use from then on, and return the broken one.

    In place, one matrix at a time: a second model may not fit into memory. The codec stays whole, so that what is
    heard comes of what the model says.
    """
    rng = np.random.default_rng(seed)
    weights: list[tuple[str, mx.array]] = tree_flatten(model.lm.parameters())  # type: ignore[assignment, no-untyped-call]
    for name, weight in weights:
        if weight.ndim >= 2 and weight.shape[0] > 1:
            shuffled = mx.take(weight, mx.array(rng.permutation(weight.shape[0])), axis=0)
            mx.eval(shuffled)
            model.lm.update(tree_unflatten([(name, shuffled)]))
    return PersonaPlex(model.folder, model.lm, model.mimi, model.tokenizer, compiled=False)
