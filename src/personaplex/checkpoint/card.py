"""The model card of a converted model: what the Hub shows, and reads."""

from __future__ import annotations

from dataclasses import dataclass

from personaplex.checkpoint.rules import lm_rules
from personaplex.config import PARTS, PLAIN_BITS, ModelConfig, Packing

_NVIDIA = (
    "license: other\nlicense_name: nvidia-open-model-license\n"
    "license_link: https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
)
LICENCES = {
    "nvidia/personaplex-7b-v1": _NVIDIA,
    "aufklarer/PersonaPlex-7B-MLX-4bit": _NVIDIA,
    "aufklarer/PersonaPlex-7B-MLX-8bit": _NVIDIA,
    "kyutai/personaplex-rl-seamless": "license: cc-by-nc-4.0",
    "kyutai/moshiko-pytorch-bf16": "license: cc-by-4.0",
    "kyutai/moshika-pytorch-bf16": "license: cc-by-4.0",
}
"""What the head of a card says of the licence that a base model hands on; of another one nothing is known."""


@dataclass(frozen=True)
class Quality:
    """What a short report found: a Markdown `table` for the card, and why the model should not be published."""

    table: str = ""
    refusals: tuple[str, ...] = ()


def card(config: ModelConfig, quality: Quality) -> str:
    """The text of the README.md beside a converted `config.json`."""
    about = config.provenance
    assert about is not None
    head = [LICENCES.get(about.base_model, "license: unknown")]
    head += [f"base_model: {about.base_model}"] if about.base_model else []
    head += ["base_model_relation: quantized"] if about.base_model and config.quantization else []
    return CARD.format(
        head="\n".join(head),
        base=about.base_model or about.source,
        source=about.source,
        converter=about.converter,
        steps=config.lm.dep_q,
        parts="\n".join(_rows(config)),
        quality=quality.table or "Not measured. `personaplex quantisation-report` measures it.",
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


CARD = """---
library_name: mlx
{head}
pipeline_tag: audio-to-audio
language: en
tags: [mlx, personaplex, moshi, speech-to-speech, full-duplex]
---

# {base} for MLX

Converted from `{source}` by `{converter}`. Its licence is that of the base model.

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
