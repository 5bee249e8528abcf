"""The repositories we know: what is in them, under which licence, and how their files are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Licence:
    """What somebody agrees to by using a checkpoint. `hub`: what the Hub calls it, in the head of a model card."""

    name: str
    url: str
    hub: str = "unknown"

    @property
    def head(self) -> str:
        """The lines about it in the head of a model card."""
        if self.hub in ("unknown", "mit") or self.hub.startswith("cc-by"):
            return f"license: {self.hub}"
        return f"license: other\nlicense_name: {self.hub}\nlicense_link: {self.url}"


@dataclass(frozen=True)
class KnownFile:
    """A file as it is known to be: its size in bytes and, where that is known too, its SHA-256."""

    n_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """A repository on the Hub. `gated`: its licence has to be accepted there before anything can be downloaded.

    `revision` is the commit that was checked, None where none was. `files` maps what is downloaded to what it must be.
    """

    kind: Literal["personaplex", "moshi", "mimi"]
    licence: Licence
    gated: bool = False
    revision: str | None = None
    files: Mapping[str, KnownFile] = field(default_factory=dict)


CC_BY = Licence("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "cc-by-4.0")
NVIDIA_OPEN = Licence(
    "NVIDIA Open Model License, its base model CC BY 4.0",
    "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
    "nvidia-open-model-license",
)
NVIDIA_OPEN_NC = Licence(
    "CC BY-NC 4.0 (no commercial use) and NVIDIA Open Model License",
    "https://creativecommons.org/licenses/by-nc/4.0/",
    "cc-by-nc-4.0",
)
OUR_OWN = Licence("MIT, as this program", "https://opensource.org/license/mit", "mit")
UNKNOWN = Licence("not stated", "")

BUNDLED = "nano"
"""The model that comes with the package; a folder of that name is `./nano`."""

MIMI_FILE = KnownFile(384_644_900, "09b782f0629851a271227fb9d36db65c041790365f11bbe5d3d59369cf863f50")
TEXT_FILE = KnownFile(552_778, "78d4336533ddc26f9acf7250d7fb83492152196c6ea4212c841df76933f18d2d")

SOURCES = {
    "nvidia/personaplex-7b-v1": Source(
        "personaplex",
        NVIDIA_OPEN,
        gated=True,
        revision="fdaf4090a61cb315c138a1faee287ffd6c716309",
        files={
            "model.safetensors": KnownFile(
                16_742_874_000, "db1290db583cdaa6cb4de444ed279e0b586ca2a372b41434b07a7461c8c0e2f4"
            ),
            "tokenizer-e351c8d8-checkpoint125.safetensors": MIMI_FILE,
            "tokenizer_spm_32k_3.model": TEXT_FILE,
            "voices.tgz": KnownFile(6_095_521, "8564e9ca7a06ca723b07c3a77c623f0faa5937d04b2647b3a727b06c5ca0b7bb"),
        },
    ),
    "kyutai/personaplex-rl-seamless": Source("personaplex", NVIDIA_OPEN_NC, gated=True),
    "kyutai/moshiko-pytorch-bf16": Source("moshi", CC_BY),
    "kyutai/moshika-pytorch-bf16": Source("moshi", CC_BY),
    "kyutai/mimi": Source("mimi", CC_BY),
    "aufklarer/PersonaPlex-7B-MLX-4bit": Source("personaplex", NVIDIA_OPEN),
    "aufklarer/PersonaPlex-7B-MLX-8bit": Source("personaplex", NVIDIA_OPEN),
}
"""Sizes and hashes are those of `nvidia/personaplex-7b-v1` at its revision; of the others none were published."""


def licence_of(base_model: str) -> Licence:
    """The licence of the bundled model or a repository by its name; `UNKNOWN` for one that is not known."""
    if base_model == BUNDLED:
        return OUR_OWN
    return SOURCES[base_model].licence if base_model in SOURCES else UNKNOWN


def what_works(kinds: tuple[str, ...] = ("personaplex", "moshi")) -> str:
    """What `--model` takes, for messages."""
    known = [repo for repo, source in SOURCES.items() if source.kind in kinds]
    return f"these work: nano, a folder that `personaplex convert` made or one in the layout of {', '.join(known)}"
