"""Voices of the user's own: a recording's codes in a small file, with where it came from and who agreed.

A voice is cloned as the reference does it: the recording, at -24 LUFS, is what the agent is made to have said before
the conversation. Its codes are all that is needed, and they belong to one codec.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import mlx.core as mx
import numpy as np

from personaplex.audio import normalise_loudness, rms
from personaplex.checkpoint.codes import read_codes
from personaplex.checkpoint.tensors import TensorFile
from personaplex.errors import AudioError, OutputError, PersonaError
from personaplex.files import whole_file
from personaplex.models.mimi import Mimi
from personaplex.turns import QUIET_RMS
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE
from personaplex.voice import Voice

SHORTEST_SECONDS = 3.0
LONGEST_VOICE_SECONDS = 30.0

MOST_CLIPPED = 0.001
"""Share of samples at full scale from which on a recording sounds broken, and so would the voice."""

LEAST_SPEECH_SECONDS = 1.5
"""Sound that a recording must hold, in frames that are not silent."""


def check_clip(pcm: np.ndarray, name: str) -> None:
    """Raise AudioError if samples [S] at 24 kHz are no good to clone a voice from, saying why."""
    seconds = len(pcm) / SAMPLE_RATE
    if seconds < SHORTEST_SECONDS:
        raise AudioError(f"{name} is {seconds:.1f} s long; a voice needs {SHORTEST_SECONDS:.0f} s or more, 5 is good")
    if seconds > LONGEST_VOICE_SECONDS:
        raise AudioError(
            f"{name} is {seconds:.1f} s long; at most {LONGEST_VOICE_SECONDS:.0f} s is used: cut out 5 to 10 good ones"
        )
    frames = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    heard = sum(rms(frame) >= QUIET_RMS for frame in frames) * FRAME_SAMPLES / SAMPLE_RATE
    if heard < LEAST_SPEECH_SECONDS:
        raise AudioError(
            f"{name} is silent: {heard:.1f} s of it can be heard, and a voice needs {LEAST_SPEECH_SECONDS} s; "
            "record it closer or louder"
        )
    share = clipped_share(pcm)
    if share > MOST_CLIPPED:
        raise AudioError(
            f"{name} is clipped: {100 * share:.1f} % of its samples are cut off at the top; record it softer"
        )


def clipped_share(pcm: np.ndarray) -> float:
    """How much of the samples [S] lies in runs of three or more at the extreme, if that is (nearly) full scale."""
    peak = float(np.abs(pcm).max())
    if peak < 0.97:
        return 0.0
    at_top = np.abs(pcm) >= 0.97 * peak
    runs = at_top[:-2] & at_top[1:-1] & at_top[2:]
    return float(runs.mean())


def clone(mimi: Mimi, pcm: np.ndarray, name: str) -> mx.array:
    """Samples [S] of a voice -> its codes [1, 8, F]. Raises AudioError for silence, or less than 0.4 s."""
    return mimi.encode(mx.array(normalise_loudness(pcm, name))[None])


class UserVoices:
    """The voices in `folder`, which need not exist yet: `NAME.safetensors` each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors")) if self.folder.is_dir() else []

    def path(self, name: str) -> Path:
        """Where the voice `name` lies. Raises PersonaError when there is none."""
        known = self.names()
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none yet"
            raise PersonaError(f"unknown voice {name!r}: {there} (in {self.folder})")
        return self.folder / f"{name}.safetensors"

    def about(self, name: str) -> Mapping[str, str]:
        """Where the voice `name` came from. Raises PersonaError, and CheckpointError for a damaged file."""
        return TensorFile(self.path(name)).metadata

    def codes(self, name: str, mimi: Mimi, codec: str) -> mx.array:
        """The codes [1, 8, F] of the voice `name`. Raises PersonaError also when they are another codec's."""
        path, about = self.path(name), self.about(name)
        if about.get("codec", codec) != codec:
            raise PersonaError(
                f"voice {name!r} was made with the codec of {about.get('model')}; name that with --model"
            )
        if "codes" not in TensorFile(path).entries:
            raise PersonaError(f"voice {name!r} is a blend: the agent speaks like it, but there is no recording of it")
        return read_codes(path, ["codes"], mimi.n_codebooks, mimi.n_bins)

    def check_name(self, name: str) -> None:
        """Raise PersonaError unless a voice of this name can be added."""
        if not re.fullmatch(r"\w[\w-]{0,63}", name):
            raise PersonaError(f"{name!r} is no name for a voice: up to 64 letters, digits, - and _")
        if name in self.names():
            raise PersonaError(f"there is a voice {name!r} already; remove it first, or take another name")

    def add(self, name: str, codes: mx.array, *, source: Path, model: str, codec: str) -> Path:
        """Write a voice whose owner has agreed. Raises PersonaError and OutputError."""
        about = {
            "source": source.name,
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "consent": "yes",
            "model": model,
            "codec": codec,
        }
        return self._write(name, {"codes": codes.astype(mx.int32)}, about)

    def add_blend(self, voice: Voice, *, source: str, model: str, codec: str) -> Path:
        """Write a voice that was made of others. Raises PersonaError and OutputError."""
        assert voice.embeddings is not None and voice.ring is not None
        tensors = {"embeddings": voice.embeddings[:, None, None], "cache": mx.array(voice.ring)[None]}
        return self._write(voice.name, tensors, {"source": source, "model": model, "codec": codec})

    def _write(self, name: str, tensors: dict[str, mx.array], about: dict[str, str]) -> Path:
        self.check_name(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {self.folder}: {error.strerror}") from error
        about = about | {"date": datetime.now(UTC).strftime("%Y-%m-%d")}
        with whole_file(self.folder / f"{name}.safetensors") as temporary:
            mx.save_safetensors(str(temporary), tensors, metadata=about)
        return self.folder / f"{name}.safetensors"

    def remove(self, name: str) -> None:
        """Delete the voice `name`. Raises PersonaError when there is none, OutputError when it cannot be."""
        path = self.path(name)
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror}") from error
