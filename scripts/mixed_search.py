"""What hurts at 4 bits: measure a trained model with one thing changed at a time.

`python scripts/mixed_search.py MODEL` prints a Markdown table: all at 8 and 4 bits by group size; each part, each
kind of matrix and each temporal layer alone at 4 bits; all at 4 but one of them; mixtures. The recipe `mixed` in
`src/personaplex/checkpoint/recipes.toml` is chosen from it. Groups that do not divide the rows of a matrix are halved.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import personaplex  # noqa: F401 - before mlx, for its BLAS
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import resolve
from personaplex.checkpoint.recipe import quantization
from personaplex.checkpoint.rules import lm_rules
from personaplex.config import PARTS, LMConfig, Packing, PackingException, QuantizationConfig
from personaplex.errors import PersonaPlexError
from personaplex.quality.report import in_memory, measure
from personaplex.quality.thresholds import Thresholds

Recipes = Iterator[tuple[str, QuantizationConfig | None]]
MATRICES = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "gating*.linear_in.weight", "gating*.linear_out.*")


def all_parts(bits: int, group: int, **others: Any) -> QuantizationConfig:
    """Every part with `bits`, but for the `others`."""
    return dataclasses.replace(QuantizationConfig.uniform(bits, group, PARTS), **others)


def layers(part: str, numbers: list[int], bits: int, group: int) -> tuple[PackingException, ...]:
    """Layers of one part with other bits."""
    name = {"temporal": "transformer", "depformer": "depformer"}[part]
    return tuple(PackingException(f"{name}.layers.{i}.*", bits, group) for i in numbers)


def recipes(config: LMConfig, g: int) -> Recipes:
    """Everything that is measured, by name; `g` is the group size where it is not what differs."""
    eight, last = Packing(8, g), config.num_layers - 1
    yield "16", None
    for bits in (8, 4):
        for group in (32, 64, 128):
            yield f"all {bits}, groups of {group}", all_parts(bits, group)
    for part in PARTS:
        yield f"only {part} 4", QuantizationConfig.uniform(4, g, (part,))
    for part, name in (("temporal", "transformer"), ("depformer", "depformer")):
        for matrix in MATRICES:
            kept = PackingException(f"{name}.layers.*.{matrix}", 4, g)
            yield f"only {part} {matrix.removesuffix('weight').strip('._*')} 4", QuantizationConfig(exceptions=(kept,))
    kept = PackingException("depformer_in.*", 4, g)
    yield "only depformer_in 4", QuantizationConfig(exceptions=(kept,))
    for i in range(config.num_layers):
        yield f"only temporal layer {i} 4", QuantizationConfig(exceptions=layers("temporal", [i], 4, g))
    for part in PARTS:
        yield f"all 4 but {part} 16", all_parts(4, g, **{part: Packing()})
    for part in PARTS:
        yield f"all 4 but {part} 8", all_parts(4, g, **{part: eight})
    ends = layers("temporal", sorted({0, last}), 8, g)
    yield "all 4 but first and last layer 8", dataclasses.replace(all_parts(4, g), exceptions=ends)
    first = layers("temporal", [0], 8, g)
    yield "all 4 but first layer 8", dataclasses.replace(all_parts(4, g), exceptions=first)
    rest = {"depformer": eight, "heads": eight, "embeddings": eight}
    yield "temporal 4, rest 8", all_parts(4, g, **rest)
    yield "temporal 4, rest 8, ends 8", dataclasses.replace(all_parts(4, g, **rest), exceptions=ends)
    yield "temporal 4, depformer 8", all_parts(4, g, depformer=eight, heads=Packing(), embeddings=Packing())
    yield "temporal 4, depformer and heads 8", all_parts(4, g, depformer=eight, heads=eight, embeddings=Packing())
    yield "temporal and embeddings 4, rest 8", all_parts(4, g, depformer=eight, heads=eight)
    yield "mixed, as the recipe is now", quantization("mixed", config, g)


def fitted(config: LMConfig, recipe: QuantizationConfig | None) -> QuantizationConfig | None:
    """The recipe, with groups halved where they do not divide the rows of a matrix."""
    if recipe is None:
        return None
    halved = list(recipe.exceptions)
    for rule in lm_rules(config, config.dep_q):
        for name, (_, *columns) in rule.sources.items():
            how = recipe.of(rule.part, name) if rule.part else None
            size = how.group_size if how else 1
            while columns[-1] % size:
                size //= 2
            if how and size < how.group_size:
                halved.append(PackingException(name, how.bits, size))
    return dataclasses.replace(recipe, exceptions=tuple(halved))


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), default=32)
    parser.add_argument("--audio", nargs="+", help="what the user says (default: as for quantisation-report)")
    arguments = parser.parse_args()
    try:
        folder, thresholds = ModelFolder(resolve(arguments.model)), Thresholds.read()
        config = folder.config.lm
        chosen = recipes(config, arguments.group_size)
        candidates = [in_memory(name, fitted(config, recipe), folder) for name, recipe in chosen]
        candidates += [dataclasses.replace(candidates[0], kv_bits=8)]
        audio = arguments.audio or [thresholds.audio]
        with tempfile.TemporaryDirectory() as scratch:
            report = measure(arguments.model, candidates, audio, thresholds, scratch=Path(scratch))
    except PersonaPlexError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(report.markdown())  # noqa: T201
    print(f"{report.seconds:.1f} s; the reference's mean probability of no word: {report.padding}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
