"""The model card of a converted model: what the Hub shows, and reads."""

from __future__ import annotations

from dataclasses import dataclass

from personaplex.checkpoint.rules import lm_rules
from personaplex.checkpoint.sources import BUNDLED, UNKNOWN, licence_of
from personaplex.config import PARTS, PLAIN_BITS, ModelConfig, Packing


@dataclass(frozen=True)
class Quality:
    """What a short report found: a Markdown `table` for the card, and why the model should not be published."""

    table: str = ""
    refusals: tuple[str, ...] = ()


def card(config: ModelConfig, quality: Quality) -> str:
    """The text of the README.md beside a converted `config.json`."""
    about = config.provenance
    assert about is not None
    licence = licence_of(about.base_model)
    head = [licence.head]
    if about.base_model not in ("", BUNDLED):
        head += [f"base_model: {about.base_model}"]
        head += ["base_model_relation: quantized"] if config.quantization else []
    return CARD.format(
        head="\n".join(head),
        base=about.base_model or about.source,
        source=about.source,
        converter=about.converter,
        licence=NO_LICENCE
        if licence == UNKNOWN
        else f"Its licence is that of its base: [{licence.name}]({licence.url}).",
        steps=config.lm.dep_q,
        parts="\n".join(_rows(config)),
        quality=MEASURED.format(source=about.source, table=quality.table) if quality.table else NOT_MEASURED,
        files="\n".join(f"| {file.name} | `{file.sha256}` |" for file in about.files),
    )


def _rows(config: ModelConfig) -> list[str]:
    """Parameters of each part by how they are stored."""
    counts: dict[tuple[str, Packing], int] = {}
    for rule in lm_rules(config.lm, config.lm.dep_q):
        for name, (rows, *columns) in rule.sources.items():
            how = config.quantization.of(rule.part, name) if config.quantization and rule.part else None
            key = (rule.part or "norms", how or Packing())
            counts[key] = counts.get(key, 0) + rows * columns[-1]
    ordered = sorted(counts.items(), key=lambda item: ([*PARTS, "norms"].index(item[0][0]), item[0][1].bits))
    return [
        f"| {part} | {how.bits} | {how.group_size if how.bits < PLAIN_BITS else '-'} | {count:,} |"
        for (part, how), count in ordered
    ]


NO_LICENCE = (
    "Its licence is that of its base model, which was not known to the converter: write it here before you share it."
)

NOT_MEASURED = "Not measured. `personaplex quantisation-report` measures it."
MEASURED = """\
Beside `{source}`: it talked with a recorded question, then both read what was said and predicted every next token.
KL is the mean divergence from what it would say next, in nats; top-1 the share of moments in which both find the same
token likeliest.

{table}"""

CARD = """---
library_name: mlx
{head}
pipeline_tag: audio-to-audio
language: en
tags: [mlx, personaplex, moshi, speech-to-speech, full-duplex]
---

# {base} for MLX

Converted from `{source}` by `{converter}`. {licence}

```sh
personaplex talk --model REPO_OR_FOLDER
```

| part | bits | group size | parameters |
|---|---|---|---|
{parts}

{steps} depformer steps are stored; 8 are all that talking needs.

## Quality

{quality}

## Files

| file | SHA-256 |
|---|---|
{files}
"""
