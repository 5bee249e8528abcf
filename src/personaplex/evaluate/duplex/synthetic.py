"""A set of clips in the benchmark's layout, made here: a synthesiser speaks, so every pause and word is known.

It has every task of v1.0 and v1.5 and runs anywhere, but it is no Full-Duplex-Bench: numbers compare with numbers on
the same set only. The same seed makes the same clips wherever flite is the synthesiser.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from personaplex.audio import write_audio
from personaplex.cascade.engine import TimedWord
from personaplex.errors import OutputError, SynthesisError, UsageError
from personaplex.evaluate.duplex.backchannel import BIN_SECONDS
from personaplex.evaluate.duplex.clips import TASKS, Task
from personaplex.evaluate.duplex.transcript import write_words
from personaplex.evaluate.span import Span
from personaplex.files import whole_file
from personaplex.speech import Speaker, noise, say, user_speaker
from personaplex.units import SAMPLE_RATE

ABOUT = "synthetic.json"
HUMAN = "icc_gt_distribution.json"
"""The benchmark's name of where people say "mm-hm"; here where the text invites it, which no person was asked about."""

PAUSE_SECONDS = (0.6, 1.6)
CLAUSE_SECONDS = (0.5, 0.8)
INVITED_SECONDS = 0.8
"""How long after a clause a backchannel is in its place."""

INTERRUPTION_AFTER, EVENT_AFTER = 7.0, 4.0
"""Seconds from the user's end to the second voice, as in v1.0 and in v1.5."""

ANSWER_SECONDS = 5.0
"""What is left at a clip's end for the agent to answer in."""

_LEAD_SECONDS = 0.5
_FLOOR_DB = -70.0
_ASIDE_GAIN, _BACKGROUND_GAIN = 0.5, 0.25


@dataclass
class _Scene:
    """A recording as it is made: silence, and what is said into it."""

    speaker: Speaker
    pieces: list[np.ndarray] = field(default_factory=list)
    words: list[TimedWord] = field(default_factory=list)
    n_samples: int = 0

    @property
    def seconds(self) -> float:
        return self.n_samples / SAMPLE_RATE

    def wait(self, seconds: float) -> None:
        """Silence."""
        self._add(np.zeros(round(seconds * SAMPLE_RATE), np.float32))

    def say(self, text: str, speaker: Speaker | None = None, gain: float = 1.0) -> Span:
        """Speech; from its first word's beginning to its last word's end."""
        said, begin = say(speaker or self.speaker, text), self.n_samples
        words = [
            TimedWord(word.text, (begin + word.start) / SAMPLE_RATE, (begin + word.end) / SAMPLE_RATE)
            for word in said.words
        ]
        self._add(said.pcm * np.float32(gain))
        self.words += words
        return Span(words[0].start, words[-1].end)

    def without(self, span: Span) -> np.ndarray:
        """The recording with silence in place of `span`, which silence is around."""
        pcm = self.pcm
        pcm[round((span.start - 0.1) * SAMPLE_RATE) : round((span.end + 0.1) * SAMPLE_RATE)] = 0
        return pcm

    @property
    def pcm(self) -> np.ndarray:
        return np.concatenate(self.pieces)

    def _add(self, pcm: np.ndarray) -> None:
        self.pieces.append(pcm)
        self.n_samples += len(pcm)


@dataclass(frozen=True)
class _Made:
    """A clip: its recordings by file name, its annotation by file name, and what else is known of it."""

    scene: _Scene
    annotations: dict[str, Any]
    truth: dict[str, Any]
    clean: np.ndarray | None = None


@cache
def _lines(kind: str) -> list[str]:
    with Path(__file__).with_name("sentences.toml").open("rb") as file:
        return str(tomllib.load(file)[kind]).strip().splitlines()


def _line(rng: np.random.Generator, kind: str) -> str:
    return str(rng.choice(_lines(kind)))


def _between(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(rng.uniform(*limits))


def _begun(rng: np.random.Generator) -> _Scene:
    scene = _Scene(_speaker(rng))
    scene.wait(_LEAD_SECONDS)
    return scene


def _speaker(rng: np.random.Generator) -> Speaker:
    """A user whose synthesiser is here: flite's, which says the same twice, and espeak-ng's where there is none."""
    wanted = _synthesiser()
    while (speaker := user_speaker(rng)).engine != wanted:
        pass
    return speaker


@cache
def _synthesiser() -> str:
    try:
        say(Speaker("probe", "flite", "slt", 172.0), "yes")
    except SynthesisError:
        say(Speaker("probe", "espeak", "en-us", 1.0), "yes")  # raises, with what to install, when neither is here
        return "espeak"
    return "flite"


def _pause(rng: np.random.Generator) -> _Made:
    scene = _begun(rng)
    first, second = _line(rng, "unfinished").split(" | ")
    before = scene.say(first)
    scene.wait(_between(rng, PAUSE_SECONDS))
    after = scene.say(second)
    pause = Span(before.end, after.start)
    # It ends with the user's turn: whatever is said in it is said into that.
    return _Made(scene, {"pause.json": [{"text": "[PAUSE]", "timestamp": list(pause)}]}, {"pauses": [list(pause)]})


def _turn(rng: np.random.Generator) -> _Made:
    scene = _begun(rng)
    asked = scene.say(_line(rng, "questions"))
    scene.wait(ANSWER_SECONDS)
    entry = {"text": "[TURN-TAKING]", "timestamp": [asked.end, scene.seconds]}
    return _Made(scene, {"turn_taking.json": [entry]}, {"user_end": asked.end})


def _backchannel(rng: np.random.Generator) -> _Made:
    scene = _begun(rng)
    invited = []
    for clause in _line(rng, "monologues").split(" | "):
        ended = scene.say(clause).end
        scene.wait(_between(rng, CLAUSE_SECONDS))
        invited.append([ended, ended + INVITED_SECONDS])
    return _Made(scene, {}, {"invited": invited})


def _interruption(rng: np.random.Generator) -> _Made:
    scene = _begun(rng)
    context, interrupt = _line(rng, "openings"), _line(rng, "interruptions")
    scene.say(context)
    scene.wait(INTERRUPTION_AFTER)
    span = scene.say(interrupt)
    scene.wait(ANSWER_SECONDS)
    entry = {"context": context, "interrupt": interrupt, "timestamp": list(span)}
    return _Made(scene, {"interrupt.json": [entry]}, {"interruption": list(span)})


def _overlap(rng: np.random.Generator, kind: str, key: str, gain: float, *, stranger: bool = False) -> _Made:
    scene = _begun(rng)
    context, heard = _line(rng, "openings"), _line(rng, kind)
    scene.say(context)
    scene.wait(EVENT_AFTER)
    event = scene.say(heard, _speaker(rng) if stranger else None, gain)
    scene.wait(ANSWER_SECONDS)
    entry = {"context_text": context, key: heard, "timestamps": list(event)}
    return _Made(scene, {"metadata.json": entry}, {"event": list(event)}, scene.without(event))


_TASKS: dict[str, Task] = {
    "synthetic_pause_handling": "pause",
    "synthetic_backchannel": "backchannel",
    "synthetic_turn_taking": "turn",
    "synthetic_user_interruption": "interruption",
    "user_interruption": "user interruption",
    "user_backchannel": "user backchannel",
    "talking_to_other": "talking to other",
    "background_speech": "background speech",
}
"""The subsets, in the order in which they are made; their names are as the benchmark's, for its scripts know them."""

SUBSETS = tuple(_TASKS)

_MAKERS: dict[str, Callable[[np.random.Generator], _Made]] = {
    "synthetic_pause_handling": _pause,
    "synthetic_backchannel": _backchannel,
    "synthetic_turn_taking": _turn,
    "synthetic_user_interruption": _interruption,
    "user_interruption": lambda rng: _overlap(rng, "interruptions", "current_turn_text", 1.0),
    "user_backchannel": lambda rng: _overlap(rng, "backchannels", "backchannel_text", 1.0),
    "talking_to_other": lambda rng: _overlap(rng, "asides", "current_turn_text", _ASIDE_GAIN),
    "background_speech": lambda rng: _overlap(rng, "background", "background_text", _BACKGROUND_GAIN, stranger=True),
}


def make_set(
    folder: Path,
    per_subset: int,
    seed: int,
    only: Collection[Task] = TASKS,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Write `per_subset` clips of each task (of `only` some) in `folder`, which must be empty or not there.

    In each clip beside its recording and annotation: the words with their times (`transcription.json`), and everything
    that is known of it (`ground_truth.json`). Raises UsageError, OutputError, and SynthesisError without a synthesiser.
    """
    if per_subset < 1:
        raise UsageError(f"{per_subset} clips of each kind; expected 1 or more")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty; name a new folder for the clips")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            whole = Path(temporary) / "set"
            _make(whole, per_subset, seed, [subset for subset in SUBSETS if _TASKS[subset] in only], tell)
            os.replace(whole, folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from error


def _make(folder: Path, per_subset: int, seed: int, subsets: Sequence[str], tell: Callable[[str], None]) -> None:
    for n_made, subset in enumerate(subsets):
        invited = {}
        for number in range(1, per_subset + 1):
            # Each clip has its own numbers: how many there are changes none of them.
            rng = np.random.default_rng([seed, SUBSETS.index(subset), number])
            made = _MAKERS[subset](rng)
            _write(folder / subset / str(number), made, rng)
            if "invited" in made.truth:
                invited[str(number)] = _distribution(made.truth["invited"], made.scene.seconds)
            tell(f"made {n_made * per_subset + number} of {len(subsets) * per_subset} clips")
        if invited:
            _write_json(folder / subset / HUMAN, invited)
    about = {"seed": seed, "per_subset": per_subset, "subsets": list(subsets), "synthesiser": _synthesiser()}
    _write_json(folder / ABOUT, about)


def _write(folder: Path, made: _Made, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    # No line is silent, and a detector of speech should not be the first to meet one that is.
    floor = noise(rng, made.scene.n_samples)
    floor *= 10 ** (_FLOOR_DB / 20) / np.sqrt(np.mean(np.square(floor)))
    for name, pcm in (("input.wav", made.scene.pcm), ("clean_input.wav", made.clean)):
        if pcm is not None:
            write_audio(folder / name, pcm + floor)
    for name, entry in made.annotations.items():
        _write_json(folder / name, entry)
    write_words(folder / "transcription.json", made.scene.words)
    speaker = made.scene.speaker
    truth = {"speaker": f"{speaker.engine} {speaker.voice}", "seconds": made.scene.seconds, **made.truth}
    _write_json(folder / "ground_truth.json", truth)


def _distribution(invited: Sequence[Sequence[float]], seconds: float) -> list[float]:
    """How likely a backchannel is in each 0.2 s: alike where one is invited, and nowhere else."""
    middles = (np.arange(int(seconds / BIN_SECONDS) + 1) + 0.5) * BIN_SECONDS
    inside = [float(any(start <= middle < end for start, end in invited)) for middle in middles]
    return [share / sum(inside) for share in inside]


def _write_json(path: Path, entry: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
