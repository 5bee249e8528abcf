"""AdamW as a function: weights and moments go in and come out, so that a step can be compiled and resumed whole."""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx

Arrays = dict[str, mx.array]


class Moments(NamedTuple):
    """Running means of the gradients and of their squares, and the number of updates [] float32."""

    first: Arrays
    second: Arrays
    updates: mx.array


def init_moments(weights: Arrays) -> Moments:
    """The moments before the first update."""
    zeros = {name: mx.zeros_like(weight) for name, weight in weights.items()}
    return Moments(zeros, dict(zeros), mx.array(0.0))


def adamw(
    weights: Arrays,
    gradients: Arrays,
    moments: Moments,
    learning_rate: mx.array,
    betas: tuple[float, float],
    decay: float,
    largest_norm: float,
) -> tuple[Arrays, Moments, mx.array]:
    """One update -> new weights, new moments, and the norm that the gradients had before being clipped."""
    norm = mx.sqrt(sum((mx.square(g).sum() for g in gradients.values()), mx.array(0.0)))
    clip = mx.minimum(1.0, largest_norm / (norm + 1e-9))
    count = moments.updates + 1
    slow, fast = betas[1], betas[0]
    first_scale, second_scale = 1 / (1 - mx.exp(count * math.log(fast))), 1 / (1 - mx.exp(count * math.log(slow)))
    updated, first, second = {}, {}, {}
    for name, weight in weights.items():
        gradient = gradients[name] * clip
        first[name] = fast * moments.first[name] + (1 - fast) * gradient
        second[name] = slow * moments.second[name] + (1 - slow) * mx.square(gradient)
        direction = first[name] * first_scale / (mx.sqrt(second[name] * second_scale) + 1e-8)
        updated[name] = weight - learning_rate * (direction + decay * weight)
    return updated, Moments(first, second, count), norm


def cosine(step: int, steps: int, highest: float, warmup: int, lowest: float = 0.05) -> float:
    """The learning rate of `step`: a linear rise over `warmup` steps, then half a cosine down to a share of it."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    done = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
    return highest * rise * (lowest + (1 - lowest) * (1 + math.cos(math.pi * done)) / 2)
