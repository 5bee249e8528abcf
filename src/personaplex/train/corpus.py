"""The speech that the codec learns from: one long int16 file at 24 kHz, a table of clips, a phone for every 20 ms.

Clips are made by several processes, each from its own seed, and stored in the order of the jobs: the same jobs make
the same corpus whatever the number of processes. Nothing here imports MLX.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personaplex.errors import TrainingError
from personaplex.speech import AGENTS, PHONES, Phone, Speaker, degrade, noise, say, sound, user_speaker
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

Samples = NDArray[np.float32]

LABEL_SAMPLES = 480
"""Samples with one phone label: 20 ms, four of them in a frame."""

LABELS = FRAME_SAMPLES // LABEL_SAMPLES

GROUPS = ("agent", "user", "other")
"""Whose a clip is: an agent's voice, a user's, or no speech at all. Crops are drawn by group."""

Kind = Literal["speech", "noise", "sound", "silence", "sine"]
OTHER_KINDS: tuple[Kind, ...] = ("silence", "sine", "noise", "sound")

_NAMES = ("pcm.i16", "phones.u8", "clips.npy")


@dataclass(frozen=True)
class CorpusConfig:
    """How many clips of each group, and which share of the users' has a degraded copy to be heard in its place."""

    seed: int = 1
    agent_clips: int = 9_000
    user_clips: int = 10_000
    other_clips: int = 400
    degraded: float = 0.25


@dataclass(frozen=True)
class Job:
    """One clip to be made. A degraded one is stored twice: as it is heard and as it should sound."""

    group: str
    seed: int
    kind: Kind = "speech"
    speaker: Speaker | None = None
    text: str = ""
    degraded: bool = False


class Clip(NamedTuple):
    """What a job made: pcm [n], what is heard instead of it (the same object unless degraded), labels [n / 480]."""

    pcm: NDArray[np.int16]
    heard: NDArray[np.int16]
    labels: NDArray[np.uint8]
    group: int


class Batch(NamedTuple):
    """Crops: `heard` [B, S] goes in, `target` [B, S] should come out (float32); `phones` [B, S / 1920, 4] int32."""

    heard: Samples
    target: Samples
    phones: NDArray[np.int32]


def plan(config: CorpusConfig, agent_texts: Sequence[str], user_texts: Sequence[str]) -> Iterator[Job]:
    """Jobs for the 18 agent voices in turn, for as many users as clips, and for what is not speech."""
    rng = np.random.default_rng([config.seed, 0])
    agents = list(AGENTS.values())
    for i in range(config.agent_clips):
        text = agent_texts[int(rng.integers(len(agent_texts)))]
        yield Job("agent", _seed(rng), speaker=agents[i % len(agents)], text=text)
    for _ in range(config.user_clips):
        text = user_texts[int(rng.integers(len(user_texts)))]
        heard_badly = bool(rng.random() < config.degraded)
        yield Job("user", _seed(rng), speaker=user_speaker(rng), text=text, degraded=heard_badly)
    for i in range(config.other_clips):
        yield Job("other", _seed(rng), kind=OTHER_KINDS[i % len(OTHER_KINDS)])


def make_corpus(folder: Path, jobs: Iterable[Job], processes: int, say_progress: Callable[[str], object]) -> Corpus:
    """Make every clip and write the corpus; `folder` appears when it is whole.

    Raises TrainingError when the folder exists or cannot be written, SynthesisError without a synthesiser.
    """
    if folder.exists():
        raise TrainingError(f"{folder} exists already; open it, choose another or remove it")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        _write(temporary, jobs, processes, say_progress)
        temporary.rename(folder)
    except OSError as error:
        raise TrainingError(f"the corpus {folder} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Corpus(folder)


def _write(folder: Path, jobs: Iterable[Job], processes: int, say_progress: Callable[[str], object]) -> None:
    table: list[tuple[int, int, int, int]] = []
    at = 0
    with (folder / _NAMES[0]).open("wb") as pcm, (folder / _NAMES[1]).open("wb") as phones:
        for clip in _clips(jobs, processes):
            begin = at
            for samples in (clip.pcm,) if clip.heard is clip.pcm else (clip.pcm, clip.heard):
                pcm.write(samples.tobytes())
                phones.write(clip.labels.tobytes())
                at += len(samples)
            table.append((begin, begin if clip.heard is clip.pcm else begin + len(clip.pcm), len(clip.pcm), clip.group))
            if len(table) % 2_000 == 0:
                say_progress(f"corpus: {len(table)} clips, {at / SAMPLE_RATE / 3600:.2f} h")
    np.save(folder / _NAMES[2], np.array(table, np.int64).reshape(-1, 4))
    about = {"samples": at, "clips": len(table), "phones": list(PHONES)}
    (folder / "corpus.json").write_text(json.dumps(about), encoding="utf-8")


def _clips(jobs: Iterable[Job], processes: int) -> Iterator[Clip]:
    if processes <= 1:
        yield from map(make_clip, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for clip in pool.imap(make_clip, jobs, chunksize=8):
            # What was one object is two after the way through a pipe.
            yield clip._replace(heard=clip.pcm) if np.array_equal(clip.pcm, clip.heard) else clip


def make_clip(job: Job) -> Clip:
    """Synthesise what a job asks for; its seed decides everything that is left open."""
    rng = np.random.default_rng([job.seed, 1])
    labels: NDArray[np.uint8] | None = None
    if job.kind == "speech":
        assert job.speaker is not None
        said = say(job.speaker, job.text)
        pcm = said.pcm
        labels = phone_labels(said.phones, -(-len(pcm) // LABEL_SAMPLES))
        if job.group == "user":
            pcm = pcm * np.float32(10 ** (rng.uniform(-12, 4) / 20))
    else:
        pcm = _other(job.kind, rng, int(rng.uniform(2.0, 4.0) * SAMPLE_RATE))
    pcm = np.pad(pcm, (0, -len(pcm) % LABEL_SAMPLES)).astype(np.float32)
    if labels is None:
        labels = np.zeros(len(pcm) // LABEL_SAMPLES, np.uint8)
    clean = _int16(pcm)
    heard = _int16(degrade(rng, pcm)) if job.degraded else clean
    return Clip(clean, heard, labels, GROUPS.index(job.group))


def phone_labels(phones: Iterable[Phone], n: int) -> NDArray[np.uint8]:
    """The index in PHONES of what is said in the middle of each of `n` stretches of 20 ms; 0 is silence."""
    labels = np.zeros(n, np.uint8)
    for phone in phones:
        first = -(-(phone.start - LABEL_SAMPLES // 2) // LABEL_SAMPLES)
        last = -(-(phone.end - LABEL_SAMPLES // 2) // LABEL_SAMPLES)
        labels[max(0, first) : max(0, last)] = PHONES.index(phone.label)
    return labels


def _other(kind: Kind, rng: np.random.Generator, n_samples: int) -> Samples:
    if kind == "noise":
        return noise(rng, n_samples)
    if kind == "sound":
        return sound(rng, n_samples)
    if kind == "sine":
        # The prompt's tone, and some that are softer.
        loud = 0.5 if rng.random() < 0.5 else rng.uniform(0.02, 0.6)
        return (loud * np.sin(2 * np.pi * 440 * np.arange(n_samples) / SAMPLE_RATE)).astype(np.float32)
    quiet = 0.0 if rng.random() < 0.7 else 10 ** rng.uniform(-5, -3)
    return (quiet * rng.standard_normal(n_samples)).astype(np.float32)


def _int16(pcm: Samples) -> NDArray[np.int16]:
    return np.round(np.clip(pcm, -1, 1) * 32767).astype(np.int16)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 31))


class Corpus:
    """An open corpus, memory-mapped. Raises TrainingError when it is missing, cut short or has other phones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
            self._pcm = np.memmap(folder / _NAMES[0], np.int16, "r")
            self._labels = np.memmap(folder / _NAMES[1], np.uint8, "r")
            self._clips = np.load(folder / _NAMES[2])
            whole = (len(self._pcm), len(self._labels) * LABEL_SAMPLES, len(self._clips))
            sound = whole == (about["samples"], about["samples"], about["clips"]) and about["phones"] == list(PHONES)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{folder} is no corpus, or a damaged one ({error}); make it again") from error
        if not sound:
            raise TrainingError(f"{folder} was cut short, or made by another version; make it again")
        self.n_phones = len(PHONES)
        groups = self._clips[:, 3]
        self._members = [np.flatnonzero(groups == g) for g in range(len(GROUPS))]
        # Where each clip of a group ends if they lie side by side: long clips are drawn more often.
        self._ends = [np.cumsum(self._clips[members, 2]) for members in self._members]

    @property
    def seconds(self) -> float:
        """How much there is to hear, degraded copies included."""
        return len(self._pcm) / SAMPLE_RATE

    def batch(
        self, seed: int, step: int, n_crops: int, n_frames: int, shares: Sequence[float], heard_badly: float = 0.5
    ) -> Batch:
        """The crops of `step`: always the same for the same seed.

        `shares` are the groups' chances; a crop of a clip with a degraded copy is heard from that with chance
        `heard_badly`. A crop may begin before its clip or end after it, in silence.
        """
        rng = np.random.default_rng([seed, step])
        n_samples = n_frames * FRAME_SAMPLES
        heard, target = np.zeros((2, n_crops, n_samples), np.int16)
        phones = np.zeros((n_crops, n_samples // LABEL_SAMPLES), np.int32)
        chances = np.array([share if len(m) else 0 for share, m in zip(shares, self._members, strict=True)], float)
        groups = rng.choice(len(GROUPS), n_crops, p=chances / chances.sum())
        for i, (group, place, shift, badly) in enumerate(zip(groups, *rng.random((3, n_crops)), strict=True)):
            ends = self._ends[group]
            begin, degraded, length, _ = self._clips[
                self._members[group][np.searchsorted(ends, place * ends[-1], "right")]
            ]
            margin = n_samples // 8
            first = int(shift * (length + 2 * margin - n_samples) if length + 2 * margin > n_samples else 0) - margin
            first -= first % LABEL_SAMPLES
            low, high = max(0, first), min(length, first + n_samples)
            into = slice(low - first, high - first)
            target[i, into] = self._pcm[begin + low : begin + high]
            source = degraded if badly < heard_badly else begin
            heard[i, into] = self._pcm[source + low : source + high]
            labels = slice((low - first) // LABEL_SAMPLES, (high - first) // LABEL_SAMPLES)
            phones[i, labels] = self._labels[(begin + low) // LABEL_SAMPLES : (begin + high) // LABEL_SAMPLES]
        scale = np.float32(1 / 32767)
        return Batch(heard * scale, target * scale, phones.reshape(n_crops, n_frames, LABELS))
