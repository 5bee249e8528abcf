"""The clip bank: the codes of every clip, indexed by what is said in it."""

from __future__ import annotations

import json
import struct
import tempfile
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import load_mimi
from personaplex.checkpoint.store import write_int8
from personaplex.checkpoint.tensors import TensorFile
from personaplex.config import from_json
from personaplex.errors import TrainingError
from personaplex.files import whole_file
from personaplex.models.mimi import Mimi
from personaplex.nn.state import parameters
from personaplex.train.clips import LEAD_FRAMES, TAIL_FRAMES, Clip
from personaplex.train.codec import CodecTraining
from personaplex.train.takes import FASTEST, Take, draw, heard, moved
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS

Key = tuple[str, ...]

OWN = "own"
"""The kind of an agent's clip that a model said itself (see `own_voice`)."""

Index = dict[tuple[int, str], dict[Key, list[int]]]

_BATCH_FRAMES = 4_000
_BEGUN = 2
"""Batches that the device may be busy with while others are prepared."""
_START_FRAMES = 40
RING_FRAMES = 26
"""Frames of digital silence after a clip whose codes still depend on it: the codec's window and a little more."""
_SINE_HERTZ, _SINE_LEVEL = 440.0, 0.5


@dataclass(frozen=True)
class Bank:
    """Codes of all clips [frames, 8], where each clip begins, what is said in it, and by whom.

    The last `rings[i]` frames of clip i are the silence after it, in which the codec still remembers it; `pauses[i]` is
    the first frame of a pause in mid-sentence and the first after it (0, 0 for none); its words are (index into
    `vocabulary`, first frame, last frame, how far into the first it begins in 16ths of a frame) [n, 4]. `start` [40, 8]
    is what the codec makes of silence from its first frame on, `silence` [8] what that settles to, and `sine` [8] the
    440 Hz tone, which the user's streams hold while the agent is prompted.
    """

    codes: np.ndarray
    begins: np.ndarray
    kinds: list[str]
    voices: np.ndarray
    lines: list[tuple[str, Key, str] | None]
    rings: np.ndarray
    pauses: np.ndarray
    words: np.ndarray
    word_begins: np.ndarray
    vocabulary: list[str]
    start: np.ndarray
    silence: np.ndarray
    sine: np.ndarray

    def clip(self, index: int) -> np.ndarray:
        """Codes [F, 8] of one clip, without the silence after it."""
        return self.codes[self.begins[index] : self.begins[index + 1] - self.rings[index]]

    def ring(self, index: int) -> np.ndarray:
        """Codes [R, 8] of the silence after a clip; of none where its own noise goes on."""
        return self.codes[self.begins[index + 1] - self.rings[index] : self.begins[index + 1]]

    def words_of(self, index: int) -> np.ndarray:
        """Words of one clip [n, 4]: vocabulary index, first frame, last frame, 16ths of a frame into the first."""
        return self.words[self.word_begins[index] : self.word_begins[index + 1]].astype(np.int64)

    def stretch(self, clips: Iterable[int], n_frames: int) -> np.ndarray:
        """Codes [n_frames, 8] of clips, one after the other until there are enough."""
        parts, drawn, length = [], iter(clips), 0
        while length < n_frames:
            parts.append(self.clip(next(drawn)))
            length += len(parts[-1])
        return np.concatenate(parts)[:n_frames]

    def index(self, *, own: bool = False) -> Index:
        """Clips by (agent's voice or -1, intent), then by key; sounds and beds are under (-1, kind).

        Those that were synthesised, or the model's `own`.
        """
        found: Index = {}
        chosen = np.flatnonzero((np.array(self.kinds) == OWN) == own)
        for i, voice in zip(chosen.tolist(), self.voices[chosen].tolist(), strict=True):
            line = self.lines[i]
            intent, key = (line[0], line[1]) if line else (self.kinds[i], ())
            found.setdefault((voice, intent), {}).setdefault(key, []).append(i)
        return found

    def save(self, path: Path) -> None:
        """Write the bank as one NumPy archive: processes that only read it need no device."""
        kinds, lines = list(dict.fromkeys(self.kinds)), list(dict.fromkeys(self.lines))
        kind, line = ({value: i for i, value in enumerate(values)} for values in (kinds, lines))
        text = {"kinds": kinds, "lines": lines, "vocabulary": self.vocabulary}
        arrays = {
            "codes": np.ascontiguousarray(self.codes, np.uint16),
            "begins": self.begins.astype(np.int64),
            "kind": np.array([kind[value] for value in self.kinds], np.uint8),
            "voices": self.voices.astype(np.int16),
            "line": np.array([line[value] for value in self.lines], np.uint32),
            "rings": self.rings.astype(np.uint8),
            "pauses": self.pauses.astype(np.uint16),
            "words": self.words.astype(np.min_scalar_type(self.words.max(initial=0))),
            "word_begins": self.word_begins.astype(np.int64),
            "start": self.start.astype(np.uint16),
            "silence": self.silence.astype(np.uint16),
            "sine": self.sine.astype(np.uint16),
            "text": np.frombuffer(json.dumps(text).encode(), np.uint8),
        }
        with whole_file(path) as name:
            np.savez(name, **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Bank:
        """Read what `save` wrote; the codes stay in the file. Raises TrainingError when it is not there or damaged."""
        try:
            with np.load(path) as archive:
                arrays = {name: archive[name] for name in archive.files if name != "codes"}
            text = json.loads(arrays.pop("text").tobytes())
            lines = [line and (line[0], tuple(line[1]), line[2]) for line in text["lines"]]
            return cls(
                codes=_mapped(path, "codes"),
                kinds=[text["kinds"][i] for i in arrays.pop("kind").tolist()],
                lines=[lines[i] for i in arrays.pop("line").tolist()],
                vocabulary=text["vocabulary"],
                **arrays,
            )
        except (OSError, LookupError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} is no clip bank ({error}); make it with `personaplex train bank`") from error


def _mapped(path: Path, name: str) -> np.ndarray:
    """An array of an archive, mapped: the processes that compose from a bank of a gigabyte hold it once."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        np.lib.format.read_magic(member)
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(member)
        begin = archive.getinfo(f"{name}.npy").header_offset
        with path.open("rb") as file:
            # A member's own header may be longer than the one in the directory: its name and extra field lie between.
            file.seek(begin + 26)
            begin += 30 + sum(struct.unpack("<HH", file.read(4))) + member.tell()
    return np.memmap(path, dtype, "r", begin, shape, "F" if by_columns else "C").view(np.ndarray)


def join(banks: Sequence[Bank]) -> Bank:
    """One bank of several that the same codec made, in their order."""
    if len(banks) == 1:
        return banks[0]
    vocabulary = sorted({word for bank in banks for word in bank.vocabulary})
    number = {word: i for i, word in enumerate(vocabulary)}

    def renumbered(bank: Bank) -> np.ndarray:
        known = np.array([number[word] for word in bank.vocabulary] or [0], np.int64)
        return np.concatenate([known[bank.words[:, :1]], bank.words[:, 1:]], axis=1)

    def ends(of: Sequence[np.ndarray]) -> np.ndarray:
        return np.cumsum(np.concatenate([[0], *map(np.diff, of)]))

    return replace(
        banks[0],
        codes=np.concatenate([bank.codes for bank in banks]),
        begins=ends([bank.begins for bank in banks]),
        kinds=[kind for bank in banks for kind in bank.kinds],
        voices=np.concatenate([bank.voices for bank in banks]),
        lines=[line for bank in banks for line in bank.lines],
        rings=np.concatenate([bank.rings for bank in banks]),
        pauses=np.concatenate([bank.pauses for bank in banks]),
        words=np.concatenate([renumbered(bank) for bank in banks]),
        word_begins=ends([bank.word_begins for bank in banks]),
        vocabulary=vocabulary,
    )


def load_codec(run: Path, *, int8: bool = False) -> Mimi:
    """The codec that a training run left, or what will be left of it when it is stored as `int8`; or a model's.

    Raises CheckpointError or TrainingError.
    """
    try:
        about = json.loads((run / "config.json").read_text(encoding="utf-8"))
        if "lm" in about:  # a model's folder: its codec is used as it is stored
            return ModelFolder(run).load_mimi()
        config = from_json(CodecTraining, about, str(run))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{run} is neither a run that trained a codec nor a model: {error}") from error
    path = run / "mimi.safetensors"
    if not int8:
        return load_mimi(path, config.mimi)
    with tempfile.TemporaryDirectory() as folder:
        file, stored = TensorFile(path), Path(folder) / path.name
        write_int8(stored, {name: file.take(name) for name in file.entries})
        mimi = load_mimi(stored, config.mimi)
        mx.eval(parameters(mimi))
    return mimi


def encode_bank(
    mimi: Mimi, clips: Iterable[tuple[Clip, np.ndarray]], say: Callable[[str], None], takes: int = 1, seed: int = 0
) -> Bank:
    """Run every clip through the codec, many of about the same length at a time.

    Users' clips are heard in so many `takes`, each a clip of its own: as they are, then as `takes` draws them from
    `seed`.
    """
    about: list[Clip] = []
    coded: dict[int, np.ndarray] = {}
    waiting: dict[int, list[tuple[int, np.ndarray, Take | None]]] = defaultdict(list)
    begun: deque[tuple[list[int], mx.array]] = deque()
    rng = np.random.default_rng(seed)

    def flush(n_frames: int) -> None:
        group = waiting.pop(n_frames)
        drawn = [take for _, _, take in group if take is not None]
        n_samples = abs(n_frames) * FRAME_SAMPLES
        pcm = np.zeros((len(group), round(n_samples * (FASTEST if drawn else 1)) + FRAME_SAMPLES), np.int16)
        for row, (_, samples, _) in zip(pcm, group, strict=True):
            row[: len(samples)] = samples[: len(row)]
        sound = mx.array(pcm).astype(mx.float32) / 32768.0
        if drawn:
            sound = heard(sound, LEAD_FRAMES * FRAME_SAMPLES, drawn, int(rng.integers(1 << 31)), n_samples)
        found, _ = mimi.encode_step(sound[:, :n_samples], mimi.init_encoder(len(group)))
        codes = found.astype(mx.uint16)
        mx.async_eval(codes)  # type: ignore[no-untyped-call]
        begun.append(([index for index, _, _ in group], codes))
        if len(begun) > _BEGUN:
            end()

    def end() -> None:
        indices, codes = begun.popleft()
        for index, row in zip(indices, np.array(codes), strict=True):
            coded[index] = row.T[LEAD_FRAMES:][: _kept(about[index])]

    def wait(clip: Clip, samples: np.ndarray, take: Take | None) -> None:
        about.append(clip)
        n_frames = LEAD_FRAMES + _kept(clip)
        n_frames += -n_frames % 16  # few lengths: for each, a device prepares every convolution anew
        # Below nought: clips as they are never share a batch with takes.
        at = n_frames if take is None else -n_frames
        waiting[at].append((len(about) - 1, samples, take))
        if len(waiting[at]) * n_frames >= _BATCH_FRAMES:
            flush(at)

    for index, (clip, samples) in enumerate(clips):
        whole = np.concatenate([np.zeros((LEAD_FRAMES - clip.lead) * FRAME_SAMPLES, np.int16), samples])
        wait(clip, whole, None)
        for _ in range(takes - 1 if clip.kind == "user" else 0):
            take = draw(rng)
            wait(moved(clip, take), whole, take)
        if (index + 1) % 20_000 == 0:
            say(f"bank: {index + 1} clips")
    for at in list(waiting):
        flush(at)
    while begun:
        end()
    return _collected(mimi, about, [coded[i] for i in range(len(about))])


def _kept(clip: Clip) -> int:
    """Frames of codes kept. An agent's clip keeps its last echo as its own; the silence after a user's is a ring."""
    return clip.frames + (TAIL_FRAMES if clip.kind == "agent" else _ring(clip))


def _ring(clip: Clip) -> int:
    return 0 if clip.kind in ("agent", "bed") else RING_FRAMES


def _collected(mimi: Mimi, about: list[Clip], codes: list[np.ndarray]) -> Bank:
    vocabulary = sorted({word for clip in about for word, _, _ in clip.words})
    number = {word: i for i, word in enumerate(vocabulary)}
    words = [
        [(number[word], first, last, phase) for (word, first, last), phase in zip(clip.words, clip.phases, strict=True)]
        for clip in about
    ]
    quiet = np.array(mimi.encode(mx.zeros((1, 2 * _START_FRAMES * FRAME_SAMPLES)))[0]).T
    seconds = np.arange(2 * _START_FRAMES * FRAME_SAMPLES) / 24_000
    tone = _SINE_LEVEL * np.sin(2 * np.pi * _SINE_HERTZ * seconds).astype(np.float32)
    hum = np.array(mimi.encode(mx.array(tone)[None])[0]).T
    return Bank(
        codes=np.concatenate(codes).reshape(-1, N_CODEBOOKS),
        begins=np.cumsum([0, *map(len, codes)]),
        kinds=[clip.kind for clip in about],
        voices=np.array([clip.voice for clip in about]),
        lines=[clip.line for clip in about],
        rings=np.array([_ring(clip) for clip in about]),
        pauses=np.array([clip.pause for clip in about]),
        words=np.array([word for clip in words for word in clip]).reshape(-1, 4),
        word_begins=np.cumsum([0, *map(len, words)]),
        vocabulary=vocabulary,
        start=quiet[:_START_FRAMES],
        silence=_settled(quiet),
        sine=_settled(hum),
    )


def _settled(codes: np.ndarray) -> np.ndarray:
    """The column seen most often once the codec has settled."""
    columns, counts = np.unique(codes[_START_FRAMES:], axis=0, return_counts=True)
    return cast(np.ndarray, columns[np.argmax(counts)])
