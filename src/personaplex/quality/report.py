"""One report on any number of candidates beside one reference: measured here, written by `page` and as JSON."""

from __future__ import annotations

import dataclasses
import gc
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from personaplex.audio import read_audio
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.hub import LM_FILES, resolve
from personaplex.checkpoint.load import quantised
from personaplex.checkpoint.packing import packing_of
from personaplex.checkpoint.rules import lm_rules
from personaplex.config import LMConfig, QuantizationConfig
from personaplex.errors import BackendError, UsageError
from personaplex.model import PersonaPlex
from personaplex.models.lm import LanguageModel
from personaplex.nn.state import parameters
from personaplex.quality.comparison import STREAMS, Comparison, Numbers, compare, joined, plain, summary
from personaplex.quality.reading import Script, keep, kept, read, write_script
from personaplex.quality.thresholds import Thresholds, Verdict
from personaplex.runtime.limits import Limits
from personaplex.runtime.memory import available_bytes, plan
from personaplex.units import FRAME_RATE, FRAME_SAMPLES, N_CODEBOOKS, SAMPLE_RATE

Say = Callable[[str], None]
POINTS = 120
"""Points of a curve over time, at most: each the mean of the moments between."""


def silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Candidate:
    """A model to be measured: weights stored as `quantization` says (None: plainly), keys and values in `kv_bits`."""

    name: str
    load: Callable[[], LanguageModel]
    quantization: QuantizationConfig | None = None
    kv_bits: int = 16


@dataclass(frozen=True)
class Measured:
    """A candidate's numbers: `n_bytes` of its weights in live mode, and `bits` of each on average, scales included."""

    name: str
    kv_bits: int
    bits: float
    n_bytes: int
    comparison: Comparison
    verdict: Verdict

    @property
    def label(self) -> str:
        """Its name among others."""
        return self.name if self.kv_bits == 16 else f"{self.name}, {self.kv_bits}-bit keys and values"

    @cached_property
    def numbers(self) -> dict[str, Numbers]:
        """By stream."""
        return summary(self.comparison)

    def over_time(self, stream: slice) -> list[float | None]:
        """Mean divergence of some streams, at most `POINTS` values."""
        by_moment = self.comparison.divergence[:, stream].mean(axis=1)
        return [plain(part.mean()) for part in np.array_split(by_moment, min(POINTS, len(by_moment)))]


@dataclass(frozen=True)
class Report:
    """`seconds` of `audio` files with the silence after them, and what each candidate made of them."""

    reference: str
    audio: tuple[str, ...]
    seconds: float
    padding: float | None
    candidates: tuple[Measured, ...]
    thresholds: Thresholds

    def to_json(self) -> dict[str, Any]:
        """Every number, for machines."""
        return {
            "reference": self.reference,
            "audio": list(self.audio),
            "seconds": self.seconds,
            "frames": round(self.seconds * FRAME_RATE),
            "padding": self.padding,
            "limits": {stream: dataclasses.asdict(limit) for stream, limit in self.thresholds.limits.items()},
            "candidates": [
                {
                    "name": c.name,
                    "kv_bits": c.kv_bits,
                    "bits_per_weight": plain(c.bits),
                    "bytes": c.n_bytes,
                    "verdict": c.verdict.kind,
                    "reasons": list(c.verdict.reasons),
                    "streams": c.numbers,
                    "drift": [plain(value) for value in c.comparison.drift],
                    "kl_over_time": {name: c.over_time(which) for name, which in OVER_TIME.items()},
                }
                for c in self.candidates
            ],
        }

    def rows(self) -> list[list[str]]:
        """The quality table, a heading first: for a model card, a terminal or a page."""
        head = ["weights", "bits each", "size", "keys, values"]
        head += [f"{stream} {what}" for stream in TABLE for what in ("KL", "top-1")]
        return [[*head, "verdict"], *([*_about(c), *_cells(c), c.verdict.kind] for c in self.candidates)]

    def markdown(self) -> str:
        """The quality table as Markdown."""
        head, *rows = self.rows()
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


OVER_TIME = {"text": slice(0, 1), "semantic": slice(1, 2), "acoustic": slice(2, len(STREAMS))}
TABLE = ("text", "words", "semantic", "acoustic")


def _about(c: Measured) -> list[str]:
    return [c.name, f"{c.bits:.2f}", f"{c.n_bytes / 1e9:.3g} GB", f"{c.kv_bits} bits"]


def _cells(c: Measured) -> Iterator[str]:
    for stream in TABLE:
        kl, top1 = c.numbers[stream]["kl"], c.numbers[stream]["top1"]
        yield "–" if kl is None else f"{kl:.2g}"
        yield "–" if top1 is None else f"{100 * top1:.1f} %"


def stored(model: str | Path, reference: ModelFolder, name: str | None = None) -> Candidate:
    """A model on disk as a candidate. Raises UsageError when it is of another size than the reference."""
    folder = ModelFolder(resolve(model, LM_FILES))
    ours, theirs = folder.config.lm, reference.config.lm
    if dataclasses.replace(ours, dep_q=theirs.dep_q) != theirs:
        raise UsageError(f"{model} is built otherwise than {reference.path}; only a model made of it can be compared")
    return Candidate(name or str(model), folder.load_lm, folder.config.quantization)


def in_memory(name: str, quantization: QuantizationConfig | None, reference: ModelFolder) -> Candidate:
    """What a conversion of the reference would be, made in memory when it is measured; None leaves it as it is."""

    def load() -> LanguageModel:
        plain_lm = reference.load_lm()
        return plain_lm if quantization is None else quantised(plain_lm, quantization)

    return Candidate(name, load, quantization)


def weights(config: LMConfig, quantization: QuantizationConfig | None) -> tuple[int, float]:
    """Bytes of the weights that live mode needs, and the bits of each on average."""
    packings = {rule.target: packing_of(rule, quantization) for rule in lm_rules(config, N_CODEBOOKS)}
    n_bits = n_values = 0.0
    for name, value in parameters(LanguageModel(config)).items():  # shapes; nothing of it is evaluated
        packing = packings[name]
        n_bits += value.size * (16 if packing is None else packing.bits + 32 / packing.group_size)
        n_values += value.size
    return math.ceil(n_bits / 8), n_bits / n_values


def measure(
    reference: str | Path,
    candidates: Sequence[Candidate],
    audio: Sequence[str | Path],
    thresholds: Thresholds,
    *,
    scratch: Path | None = None,
    say: Say = silent,
) -> Report:
    """Let the reference talk with each recording, then let it and every candidate read what was said.

    One model is in memory at a time: what the reference makes of it waits in a temporary folder in `scratch`, about
    0.4 MB per frame for the 7B. Raises AudioError, CheckpointError, OutputError or UsageError.
    """
    recordings = [(str(path), _padded(read_audio(path), thresholds.tail_seconds)) for path in audio]
    with tempfile.TemporaryDirectory(prefix=".quality-", dir=scratch) as temporary:
        folders = [Path(temporary) / str(i) for i in range(len(recordings))]
        scripts, config, text_padding = _reference(reference, recordings, folders, thresholds.seed, say)
        measured = []
        for candidate in candidates:
            say(f"{candidate.name}, keys and values in {candidate.kv_bits} bits: reading")
            lm = candidate.load()
            found = joined(
                [
                    compare(zip(kept(folder), read(lm, script, candidate.kv_bits), strict=True), text_padding)
                    for folder, script in zip(folders, scripts, strict=True)
                ]
            )
            del lm
            _let_go()
            n_bytes, bits = weights(config, candidate.quantization)
            padding = plain(found.padding.mean())
            verdict = thresholds.judge(summary(found), padding)
            measured.append(Measured(candidate.name, candidate.kv_bits, bits, n_bytes, found, verdict))
    seconds = sum(script.n_frames for script in scripts) / FRAME_RATE
    return Report(str(reference), tuple(name for name, _ in recordings), seconds, padding, tuple(measured), thresholds)


def _reference(
    reference: str | Path, recordings: Sequence[tuple[str, np.ndarray]], folders: Sequence[Path], seed: int, say: Say
) -> tuple[list[Script], LMConfig, int]:
    """Scripts of the conversations, and in `folders` what the reference makes of them; it is let go."""
    _check_memory(reference)
    say(f"{reference}: loading")
    model = PersonaPlex.from_pretrained(reference)
    prompt = model.compose(model.default_voice if model.list_voices() else None, model.default_prompt)
    scripts = []
    for folder, (name, pcm) in zip(folders, recordings, strict=True):
        say(f"{reference}: talking with {name} ({len(pcm) / SAMPLE_RATE:.1f} s with the silence after it)")
        scripts.append(write_script(name, model.generator, model.mimi, prompt, pcm, model.sampling(), seed))
        folder.mkdir()
        keep(read(model.lm, scripts[-1]), folder)
    config = model.config.lm
    del model
    _let_go()
    return scripts, config, config.existing_text_padding_id


def _check_memory(reference: str | Path) -> None:
    needed = plan(ModelFolder(resolve(reference)), 1, Limits(pinned_frames=0)).total
    available = available_bytes()
    if available is not None and needed > available:
        raise BackendError(
            f"measuring takes {reference} into memory, {needed / 2**30:.1f} GiB; {available / 2**30:.1f} GiB are "
            "available: free some, or measure on a machine with more"
        )


def _padded(pcm: np.ndarray, tail_seconds: float) -> np.ndarray:
    n_samples = len(pcm) + round(tail_seconds * SAMPLE_RATE)
    return np.pad(pcm, (0, n_samples + -n_samples % FRAME_SAMPLES - len(pcm)))


def _let_go() -> None:
    gc.collect()
    mx.clear_cache()
