"""The test: what its users say to which agents, and the answers that would be right. Made from a seed alone.

A set of items is `items.jsonl` and `clips.npy`, the users' speech. Items of one test are numbered without gaps, so that
a run can be split; nothing in them depends on the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from personaplex.audio import pcm16
from personaplex.dialogue import (
    Facts,
    Line,
    answer_key,
    assistant_prompt,
    role_prompt,
    sample_facts,
    user_line,
    user_plan,
)
from personaplex.errors import UsageError
from personaplex.files import whole_file
from personaplex.speech import AGENTS, HELDOUT, Speaker, Utterance, Word, degrade, noise, say, sound, user_speaker
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE, frames_in

FACTS = ("price", "has_item", "ask_name", "ask_company", "opens", "closes", "hours", "address")
"""Intents whose answer comes from the role prompt."""
CALLS_ONLY = ("again", "backchannel")
"""Intents that mean something only after something was said."""
TOLD = ("name", "color", "number", "pet", "place")
LONG_ANSWERS = ("joke", "help")

NATURAL_VOICE = "awb"
LISTEN_FRAMES = 88
"""Frames after the user's last word in which the agent may still talk: 7 s."""
DEGRADED = 0.5
"""Share of users with a room, a microphone and noise, as in training."""
QUIET_SECONDS = 30
PAUSE_SECONDS = (0.5, 1.2)
WINDOWS = (1, 2, 4, 10)
TURNS_PER_WINDOW = 6

Key = tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """One thing the user does. `start` and `stop` are samples in the clips; the others count from `start`.

    It comes when the agent has been quiet for `delay` frames, or, if it `interrupts`, has been talking for so many.
    `expected` is the right answer's intent and key; `pause` where the user halts in mid-sentence.
    """

    text: str
    intent: str
    start: int
    stop: int
    speech_begin: int
    speech_end: int
    delay: int = 12
    interrupts: bool = False
    expected: tuple[str, Key] | None = None
    pause: tuple[int, int] | None = None


@dataclass(frozen=True)
class Item:
    """One conversation. `prompt` None is no role at all; `greets` says that a service agent speaks first.

    The conversation goes on for `listen` frames after the last turn; `listened`: its last answer is kept as sound.
    """

    number: int
    test: str
    group: str
    voice: str
    prompt: str | None
    greets: bool
    turns: tuple[Turn, ...]
    listen: int = LISTEN_FRAMES
    listened: bool = False

    @property
    def expected(self) -> tuple[str, Key] | None:
        """The right answer to the last turn."""
        return self.turns[-1].expected

    @property
    def asks(self) -> str:
        """The last turn's intent."""
        return self.turns[-1].intent

    @property
    def expected_frames(self) -> int:
        """About how long it takes, for putting those of like length together."""
        spoken = sum(frames_in(turn.stop - turn.start) for turn in self.turns)
        return spoken + 50 * (len(self.turns) - 1 + self.greets) + self.listen


class Said(NamedTuple):
    """A user's clip: float32 [S], the samples where speech begins and ends in it, and a pause's."""

    pcm: np.ndarray
    begin: int
    end: int
    pause: tuple[int, int] | None = None


@dataclass
class _Maker:
    """What one item is made from: its own random numbers, and the clips of all."""

    rng: np.random.Generator
    clips: list[np.ndarray]
    n_samples: int = 0

    def turn(
        self, line: Line, speaker: Speaker, expected: tuple[str, Key] | None, *, paused: bool = False, **how: int
    ) -> Turn:
        utterance = say(speaker, line.text)
        pause = None
        if paused:
            utterance, pause = with_pause(self.own(), utterance)
        said = _as_heard(self.own(), utterance, pause)
        return self.clip(said, line.text, line.intent, expected, **how)

    def own(self) -> np.random.Generator:
        """Random numbers for a sound: how many it takes depends on a synthesiser, what is said after it may not."""
        return np.random.default_rng(int(self.rng.integers(1 << 62)))

    def clip(self, said: Said, text: str, intent: str, expected: tuple[str, Key] | None, **how: int) -> Turn:
        start = self.n_samples
        self.clips.append(pcm16(said.pcm))
        self.n_samples += len(said.pcm)
        interrupts = bool(how.pop("interrupts", 0))
        return Turn(
            text, intent, start, self.n_samples, said.begin, said.end,
            expected=expected, pause=said.pause, interrupts=interrupts, **how,
        )  # fmt: skip


def with_pause(rng: np.random.Generator, utterance: Utterance) -> tuple[Utterance, tuple[int, int]]:
    """The utterance with 0.5 to 1.2 s of silence between two of its words, and where that lies.

    Not before the last third: a question that lacks only its "please" may well be answered.
    """
    words = utterance.words
    after = int(rng.integers(min(2, len(words) - 1), max(min(2, len(words) - 1) + 1, 2 * len(words) // 3 + 1)))
    cut = (words[after - 1].end + words[after].start) // 2
    length = int(rng.uniform(*PAUSE_SECONDS) * SAMPLE_RATE)
    fade = np.linspace(1, 0, 120, dtype=np.float32)
    before, behind = utterance.pcm[:cut].copy(), utterance.pcm[cut:].copy()
    before[-120:] *= fade[-len(before[-120:]) :]
    behind[:120] *= fade[::-1][: len(behind[:120])]
    pcm = np.concatenate([before, np.zeros(length, np.float32), behind])
    moved = tuple(w if i < after else Word(w.text, w.start + length, w.end + length) for i, w in enumerate(words))
    return Utterance(pcm, moved, utterance.phones), (cut, cut + length)


def _as_heard(rng: np.random.Generator, utterance: Utterance, pause: tuple[int, int] | None) -> Said:
    """What reaches the microphone: anywhere in a frame, at any loudness, half the time from a room and with noise."""
    offset = int(rng.integers(FRAME_SAMPLES))
    begin, end = offset + utterance.words[0].start, offset + utterance.words[-1].end
    pcm = np.pad(utterance.pcm, (offset, 0))
    if rng.random() < DEGRADED:
        pcm = degrade(rng, np.pad(pcm, (0, 2 * FRAME_SAMPLES)))
    else:
        pcm = pcm * np.float32(10 ** (rng.uniform(-12, 4) / 20))
    return Said(pcm, begin, end, pause and (offset + pause[0], offset + pause[1]))


@dataclass(frozen=True)
class Role:
    """An agent's part: what it was told, and the facts in it."""

    prompt: str
    facts: Facts

    @property
    def greets(self) -> bool:
        """Service agents speak first."""
        return self.facts.company is not None

    def answer(self, line: Line, told: dict[str, str | Line] | None = None) -> tuple[str, Key]:
        """The right answer to a line. Raises ValueError for a line that wants none."""
        answer = answer_key(line.intent, line.key, self.facts, told or {})
        if answer is None:
            raise ValueError(f"{line.intent} has no answer")
        return answer.intent, answer.key


def _service(rng: np.random.Generator, values: str, phrasing: str) -> Role:
    facts = sample_facts(rng, values)  # type: ignore[arg-type]
    return Role(role_prompt(rng, facts, phrasing), facts)  # type: ignore[arg-type]


def _any_role(rng: np.random.Generator, phrasing: str) -> Role:
    if rng.random() < 0.5:
        return _service(rng, "train", phrasing)
    name = sample_facts(rng, "train").name if rng.random() < 0.5 else None
    return Role(assistant_prompt(rng, name, phrasing), Facts(name=name))  # type: ignore[arg-type]


def _fact_question(rng: np.random.Generator, role: Role, phrasing: str, intent: str) -> Line | None:
    """A question whose answer stands in the prompt, None if it does not."""
    key: Key | None = ()
    if intent in ("price", "has_item"):
        key = (role.facts.prices[rng.integers(len(role.facts.prices))][0],) if role.facts.prices else None
        if intent == "has_item" and rng.random() < 0.5:
            key = None  # any item: most often one that is not there
    line = user_line(rng, phrasing, intent, key)  # type: ignore[arg-type]
    return None if role.answer(line)[0] == "unknown_fact" else line


def _fact(rng: np.random.Generator, number: int, values: str, phrasing: str) -> tuple[Role, Line]:
    """A role and a question about its facts; the kinds of question in turn."""
    while True:
        role = _service(rng, values, phrasing)
        if line := _fact_question(rng, role, phrasing, FACTS[number % len(FACTS)]):
            return role, line


def _others(rng: np.random.Generator, n: int, phrasing: str) -> list[Line]:
    """n lines about anything but facts, in the balance of training."""
    lines: list[Line] = []
    while len(lines) < n:
        plan = user_plan(rng, max(400, 2 * n), phrasing)  # type: ignore[arg-type]
        lines += [line for line in plan if line.intent not in (*FACTS, *CALLS_ONLY)]
    return lines[:n]


Speakers = Callable[[np.random.Generator], Speaker]


def _synthetic_heldout(rng: np.random.Generator) -> Speaker:
    names = [name for name in HELDOUT if name != NATURAL_VOICE]
    return HELDOUT[names[rng.integers(len(names))]]


def _natural(_: np.random.Generator) -> Speaker:
    return HELDOUT[NATURAL_VOICE]


class _Questions(NamedTuple):
    """One set of single questions: facts (half of them held-out ones) and as many others."""

    test: str
    phrasing: str
    speakers: Speakers
    share: float
    """Facts, and others, as a share of the row's size."""


_QUESTIONS = (
    _Questions("trained", "train", user_speaker, 1.0),
    _Questions("phrasing", "heldout", user_speaker, 0.5),
    _Questions("voice", "heldout", _synthetic_heldout, 0.5),
    _Questions("natural", "train", _natural, 0.5),
    _Questions("natural phrasing", "heldout", _natural, 0.5),
)

TESTS = (*(q.test for q in _QUESTIONS), "bare", "recall", "pause", "quiet", "interruption", "backchannel", "long")
VOICES = tuple(AGENTS)


def make_items(per_row: int, seed: int, tests: Sequence[str] = TESTS[:-1]) -> tuple[list[Item], np.ndarray]:
    """`per_row` items for each row of each of `tests`, and the users' clips, int16 [S] at 24 kHz.

    Raises UsageError for an unknown test, SynthesisError without a synthesiser.
    """
    if unknown := set(tests) - set(TESTS):
        raise UsageError(f"unknown test {sorted(unknown)[0]!r}; known are {', '.join(TESTS)}")
    clips: list[np.ndarray] = []
    maker = _Maker(np.random.default_rng(seed), clips)
    items: list[Item] = []
    for test in (t for t in TESTS if t in tests):
        # Each test has its own numbers: leaving one out changes no other.
        maker.rng = np.random.default_rng([seed, TESTS.index(test)])
        items += _of_test(maker, test, per_row, 10_000 * TESTS.index(test))
    return items, np.concatenate([np.zeros(0, np.int16), *clips])


def _of_test(maker: _Maker, test: str, per_row: int, first: int) -> list[Item]:
    questions = {q.test: q for q in _QUESTIONS}
    if test in questions:
        return _questions(maker, questions[test], per_row, first)
    makers = {
        "bare": _bare,
        "recall": _recall,
        "pause": _pause,
        "quiet": _quiet,
        "interruption": _interruption,
        "backchannel": _backchannel,
    }
    if test == "long":
        return _long(maker, max(1, per_row // 10), first)
    return [makers[test](maker, first + i) for i in range(per_row)]


def _voice(number: int) -> str:
    """The voices in turn, each round shifted by one: items come in twos and fours, and each kind gets every voice."""
    return VOICES[(number + number // len(VOICES)) % len(VOICES)]


def _item(number: int, test: str, group: str, role: Role, turns: Sequence[Turn], **more: int) -> Item:
    listened, listen = bool(more.get("listened", False)), more.get("listen", LISTEN_FRAMES)
    voice = _voice(number)
    return Item(number, test, group, voice, role.prompt, role.greets, tuple(turns), listen, listened)


def _questions(maker: _Maker, test: _Questions, per_row: int, first: int) -> list[Item]:
    rng, n = maker.rng, max(1, round(per_row * test.share))
    items = []
    for i, line in enumerate(_others(rng, n, test.phrasing)):
        fresh = i % 2 == 1
        role, fact = _fact(rng, i // 2, "heldout" if fresh else "train", test.phrasing)
        turn = maker.turn(fact, test.speakers(rng), role.answer(fact))
        group, listened = "fresh fact" if fresh else "fact", test.test == "trained"
        items.append(_item(first + 2 * i, test.test, group, role, [turn], listened=listened))
        role = _any_role(rng, test.phrasing)
        turn = maker.turn(line, test.speakers(rng), role.answer(line))
        items.append(_item(first + 2 * i + 1, test.test, "other", role, [turn], listened=listened))
    return items


def _bare(maker: _Maker, number: int) -> Item:
    role, line = _fact(maker.rng, number, "train", "train")
    turn = maker.turn(line, user_speaker(maker.rng), role.answer(line))
    return Item(number, "bare", "fact", _voice(number), None, False, (turn,))


def _recall(maker: _Maker, number: int) -> Item:
    rng, speaker = maker.rng, user_speaker(maker.rng)
    role, what = _any_role(rng, "train"), TOLD[number % len(TOLD)]
    told = user_line(rng, "train", f"tell_{what}")
    asked = user_line(rng, "train", f"recall_{what}", ())
    between = [line for line in _others(rng, 8, "train") if "_" not in line.intent or "tell_" not in line.intent]
    between = [line for line in between if not line.intent.startswith("recall_")][: int(rng.integers(1, 3))]
    lines = [told, *between, asked]
    turns = [maker.turn(line, speaker, role.answer(line, {what: told.key[0]})) for line in lines]
    return _item(number, "recall", what, role, turns)


def _pause(maker: _Maker, number: int) -> Item:
    rng = maker.rng
    while True:
        if number % 2:
            role, line = _fact(rng, number // 2, "train", "train")
        else:
            role, line = _any_role(rng, "train"), _others(rng, 1, "train")[0]
        if len(line.text.split()) >= 4:
            turn = maker.turn(line, user_speaker(rng), role.answer(line), paused=True)
            return _item(number, "pause", "fact" if number % 2 else "other", role, [turn])


def _quiet(maker: _Maker, number: int) -> Item:
    rng, n = maker.rng, QUIET_SECONDS * SAMPLE_RATE
    group = ("silence", "noise", "noise", "noise", "sound")[number % 5]
    if group == "silence":
        pcm = np.zeros(n, np.float32)
    elif group == "noise":
        pcm = noise(maker.own(), n)
    else:
        pcm, own = np.zeros(n, np.float32), maker.own()
        for at in range(SAMPLE_RATE, n - 4 * SAMPLE_RATE, 4 * SAMPLE_RATE):
            heard = sound(own, int(own.integers(SAMPLE_RATE // 4, 3 * SAMPLE_RATE)))
            pcm[at : at + len(heard)] = heard
    turn = maker.clip(Said(pcm, 0, n), "", group, None)
    return _item(number, "quiet", group, _any_role(rng, "train"), [turn], listen=0)


def _long_answer(rng: np.random.Generator, number: int) -> tuple[Role, Line]:
    """A question whose answer takes some seconds."""
    if number % 2:
        role, line = _fact(rng, FACTS.index("address"), "train", "train")
        return role, line
    role = _any_role(rng, "train")
    return role, user_line(rng, "train", LONG_ANSWERS[number // 2 % len(LONG_ANSWERS)])


def _interruption(maker: _Maker, number: int) -> Item:
    rng, speaker = maker.rng, user_speaker(maker.rng)
    role = _any_role(rng, "train")
    lines = [user_line(rng, "train", LONG_ANSWERS[number % len(LONG_ANSWERS)]), *_others(rng, 1, "train")]
    turns = [maker.turn(lines[0], speaker, role.answer(lines[0]))]
    delay = int(rng.integers(5, 13))
    turns.append(maker.turn(lines[1], speaker, role.answer(lines[1]), delay=delay, interrupts=True))
    return _item(number, "interruption", lines[0].intent, role, turns)


def _backchannel(maker: _Maker, number: int) -> Item:
    rng, speaker = maker.rng, user_speaker(maker.rng)
    role, line = _long_answer(rng, number)
    turns = [maker.turn(line, speaker, role.answer(line))]
    nod = user_line(rng, "train", "backchannel")
    turns.append(maker.turn(nod, speaker, None, delay=int(rng.integers(5, 11)), interrupts=True))
    return _item(number, "backchannel", line.intent, role, turns)


def _long(maker: _Maker, n: int, first: int) -> list[Item]:
    rng, items = maker.rng, list[Item]()
    for windows in WINDOWS:
        for i in range(n):
            speaker = user_speaker(rng)
            role, asked = _fact(rng, i, "train", "train")
            lines = [*_others(rng, TURNS_PER_WINDOW * windows, "train"), asked]
            told: dict[str, str | Line] = {}
            turns = []
            for line in lines:
                turns.append(maker.turn(line, speaker, role.answer(line, told)))
                if line.intent.startswith("tell_"):
                    told[line.intent.removeprefix("tell_")] = line.key[0]
            items.append(_item(first + len(items), "long", str(windows), role, turns))
    return items


def save_items(folder: Path, items: Sequence[Item], clips: np.ndarray) -> None:
    """Write `items.jsonl` and `clips.npy`."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "clips.npy") as name:
        np.save(name, clips)
    with whole_file(folder / "items.jsonl") as name:
        name.write_text("".join(f"{json.dumps(asdict(item))}\n" for item in items))


def load_items(folder: Path) -> list[Item]:
    """What `save_items` wrote, without the clips. Raises UsageError when it is not there."""
    path = folder / "items.jsonl"
    if not path.is_file():
        raise UsageError(f"{folder} holds no items; make them with `evaluate_nano.py items`")
    return [_read(json.loads(line)) for line in path.read_text().splitlines()]


def load_clips(folder: Path) -> np.ndarray:
    """The users' speech, int16 [S], read as it is needed."""
    if not (folder / "clips.npy").is_file():
        raise UsageError(f"{folder} holds no clips; make them with `evaluate_nano.py items`")
    return np.load(folder / "clips.npy", mmap_mode="r")  # type: ignore[no-any-return]


def _read(entry: dict[str, object]) -> Item:
    turns = []
    for turn in entry.pop("turns"):  # type: ignore[attr-defined]
        expected, pause = turn.pop("expected"), turn.pop("pause")
        turns.append(
            Turn(**turn, expected=expected and (expected[0], tuple(expected[1])), pause=pause and tuple(pause))
        )
    return Item(**entry, turns=tuple(turns))  # type: ignore[arg-type]
