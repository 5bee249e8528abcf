"""A model on disk: which file is which, read when it is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from personaplex.checkpoint import published
from personaplex.checkpoint.layout import CONFIG_FILE, LM_FILE, read_config, read_transformers_mimi, recorded
from personaplex.checkpoint.load import load_lm, load_mimi
from personaplex.checkpoint.repository import sha256_of
from personaplex.checkpoint.sources import KnownFile, what_works
from personaplex.checkpoint.tensors import TensorFile
from personaplex.checkpoint.voices import VoiceShelf
from personaplex.config import MimiConfig, ModelConfig
from personaplex.errors import CheckpointError, UsageError
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.text import Tokenizer
from personaplex.units import FRAME_RATE

LM_INDEX = "model.safetensors.index.json"
MIMI_FILES = ("tokenizer-*.safetensors", "mimi*.safetensors")
TEXT_FILES = ("tokenizer*.model", "*.model")
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14


class ModelFolder:
    """A folder in the reference's layout: language model, Mimi, SentencePiece model, voices, perhaps a config.json.

    The language model may lie in parts, with an index, or in the three files of `checkpoint/published.py`.
    Or Mimi alone, in that layout or in that of Hugging Face's `MimiModel`; then there is only the codec to load.

    A converted folder's config.json tells the sizes of its files, which are compared when they are opened, and their
    SHA-256, which `verify` compares. `context_seconds` shortens the language model's window. Raises CheckpointError
    when the folder is missing; a missing file is an error only when it is needed.
    """

    def __init__(self, path: Path, context_seconds: float | None = None) -> None:
        if not path.is_dir():
            raise CheckpointError(f"the model folder {path} does not exist")
        self.path = path
        self._context_seconds = context_seconds

    @cached_property
    def config(self) -> ModelConfig:
        """What the model is made of.

        Raises ConfigError naming the field, CheckpointError for a layout that cannot be read, UsageError for a window
        that the model cannot have.
        """
        published_too = self._is_published
        config = published.read_config(self.path / "config.json") if published_too else read_config(self.path)
        if self._context_seconds is None:
            return config
        own, frames = config.lm.context, self._context_seconds * FRAME_RATE
        if not 1 <= frames <= own:
            raise UsageError(
                f"context seconds is {self._context_seconds}; this model's window is {own / FRAME_RATE:.1f} s, "
                "and a shorter one must hold a frame"
            )
        return dataclasses.replace(config, lm=dataclasses.replace(config.lm, context=int(frames)))

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model's states from another's: its configuration, and samples of its weights.

        Samples, because reading 16 GB to recognise a file would take longer than what it saves.
        """
        return _digest(self.config.to_json(), *self.lm_files, self.codec_file)

    @cached_property
    def codec_fingerprint(self) -> str:
        """What tells this model's codec from another's, to which its codes mean nothing: samples of its weights."""
        return _digest("", self.codec_file)

    @property
    def codec_file(self) -> Path:
        """The file that holds Mimi. Raises CheckpointError when there is none, or more than one."""
        return self._one(LM_FILE) if self.codec[1] else self._one(*MIMI_FILES)

    @cached_property
    def codec(self) -> tuple[MimiConfig, bool]:
        """What the codec is made of, and whether it is in the layout of Hugging Face's `MimiModel`."""
        transformers = read_transformers_mimi(self.path)
        return (transformers, True) if transformers else (self.config.mimi, False)

    @property
    def text_file(self) -> Path:
        """The SentencePiece model. Raises CheckpointError when there is none, or more than one."""
        return self._one(*TEXT_FILES)

    @cached_property
    def voices(self) -> VoiceShelf:
        """The voices that came with the model."""
        return VoiceShelf(self.path)

    @cached_property
    def lm_files(self) -> list[Path]:
        """What holds the language model: one file, the parts that an index names, or the published three."""
        if self._is_published:
            return [self._one(name) for name in published.FILES]
        if not (index := self.path / LM_INDEX).is_file():
            return [self._one(LM_FILE)]
        if (self.path / LM_FILE).exists():
            raise CheckpointError(f"{self.path} holds both {LM_FILE} and {LM_INDEX}; keep one")
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index} is not the index of a model's parts: {error}") from error
        if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name) for name in names):
            raise CheckpointError(f"{index} is not the index of a model's parts: it names none, or none in its folder")
        return [self._one(name) for name in names]

    def verify(self, known: Mapping[str, KnownFile] | None = None) -> list[str]:
        """Read the files whose SHA-256 is known, to `config.json` or else here, and return their names.

        Raises CheckpointError for the first that is missing or another one.
        """
        files = {**(known or {}), **self._recorded}
        for name, about in files.items():
            path = self.path / name
            if not path.is_file():
                raise CheckpointError(f"{self.path} holds no {name}, which belongs to it; get the folder again")
            if about.sha256 and (found := sha256_of(path, name)) != about.sha256:
                raise CheckpointError(
                    f"{path} is another file: its SHA-256 is {found}, not {about.sha256}; get it again"
                )
        return [name for name, about in files.items() if about.sha256]

    @cached_property
    def _recorded(self) -> dict[str, KnownFile]:
        return recorded(self.path)

    @property
    def _is_published(self) -> bool:
        return not (self.path / LM_FILE).exists() and any((self.path / name).is_file() for name in published.FILES)

    def open_lm(self) -> TensorFile:
        """The language model's tensors under the reference's names."""
        return TensorFile(*self.lm_files, rename=published.reference_name if self._is_published else None)

    def load_lm(self, depformer_steps: int = 8, dtype: mx.Dtype | None = None) -> LanguageModel:
        """Read the language model; see `personaplex.checkpoint.load.load_lm`."""
        config = self.config
        return load_lm(
            self.open_lm(),
            config.lm,
            depformer_steps=depformer_steps,
            quantization=config.quantization,
            dtype=dtype,
        )

    def load_mimi(self, n_codebooks: int | None = None) -> Mimi:
        """Read the codec, with at least `n_codebooks` where the model itself uses fewer.

        Raises UsageError when its file holds fewer than those.
        """
        config, transformers_layout = self.codec
        if n_codebooks is not None and n_codebooks > config.num_codebooks:
            if n_codebooks > config.quantizer.n_q:
                raise UsageError(f"codebooks is {n_codebooks}; this codec has {config.quantizer.n_q}")
            config = dataclasses.replace(config, num_codebooks=n_codebooks)
        return load_mimi(self.codec_file, config, transformers_layout=transformers_layout)

    def load_tokenizer(self) -> Tokenizer:
        """Read the SentencePiece model."""
        return Tokenizer(self.text_file, self.config.lm.text_card)

    def _one(self, *patterns: str) -> Path:
        for pattern in patterns:
            found = sorted(self.path.glob(pattern))
            if len(found) > 1:
                raise CheckpointError(f"{self.path} holds both {found[0].name} and {found[1].name}; keep one")
            if found:
                known, size = self._recorded.get(found[0].name), found[0].stat().st_size
                if known and size != known.n_bytes:
                    raise CheckpointError(
                        f"{found[0]} is {size} bytes long, not {known.n_bytes} as {CONFIG_FILE} says; get it again"
                    )
                return found[0]
        raise CheckpointError(f"{self.path} holds no {' or '.join(patterns)}; {what_works()}")


def _digest(text: str, *paths: Path) -> str:
    digest = hashlib.sha256(text.encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(_SAMPLES):
                file.seek(part * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
