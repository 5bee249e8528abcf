"""Conversations with the test's users, many at a time, through the engine that everybody uses.

A user speaks when it is the moment for it (the agent has fallen silent, or is in the middle of a sentence), not at a
fixed time: how long a greeting takes is the model's affair.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from personaplex.audio import pcm16, read_audio, write_audio
from personaplex.engine.duplex import Duplex, settle
from personaplex.engine.generator import Generator
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.errors import UsageError
from personaplex.evaluate.nano.items import Item
from personaplex.files import whole_file
from personaplex.model import PersonaPlex
from personaplex.nn.state import stack
from personaplex.text import EPAD, PAD, TextStream
from personaplex.turns import QUIET_RMS
from personaplex.units import FRAME_SAMPLES, N_CODEBOOKS, SAMPLE_RATE

PATIENCE = 50
"""Frames that a user waits for the agent to begin before going on alone: 4 s."""
LONGEST_WAIT = 190
"""Frames after which a user goes on whatever the agent does: 15 s."""
QUIET_DB = 20 * np.log10(QUIET_RMS)
LOWEST_DB = -120
_PART_SAMPLES = 400 * SAMPLE_RATE
"""Sound per file: below 16 MiB even if it does not compress."""


@dataclass(frozen=True)
class Conversation:
    """What happened. Frames count from the first after the prompt.

    `began[k]` is the frame with the first sample of turn k's clip; `text` holds (frame, text completed in it); `level`
    the agent's loudness in each frame (dBFS, whole numbers); `codes` [F, 8]; `pcm` int16 from `pcm_from` (a frame) on,
    empty where nobody is to listen.
    """

    number: int
    began: tuple[int, ...]
    text: tuple[tuple[int, str], ...]
    level: tuple[int, ...]
    codes: np.ndarray
    pcm: np.ndarray
    pcm_from: int


class User:
    """One item's user: says its turns when their time has come."""

    def __init__(self, item: Item, clips: np.ndarray) -> None:
        self._item = item
        self._clips = clips
        self.began: list[int] = []
        self._frame = 0
        self._left = np.zeros(0, np.int16)
        self._wait(agent_speaks=item.greets)

    def _wait(self, *, agent_speaks: bool) -> None:
        self._waited = self._talking = self._quiet = 0
        self._agent_speaks = agent_speaks

    @property
    def done(self) -> bool:
        """Everything is said, and the answer was listened to."""
        said = len(self.began) == len(self._item.turns)
        return said and not len(self._left) and self._waited >= self._item.listen

    def say(self) -> np.ndarray:
        """The user's next frame [1920] float32."""
        if not len(self._left) and len(self.began) < len(self._item.turns) and self._is_time():
            turn = self._item.turns[len(self.began)]
            self._left = self._clips[turn.start : turn.stop]
            self.began.append(self._frame)
            self._wait(agent_speaks=True)
        frame, self._left = self._left[:FRAME_SAMPLES], self._left[FRAME_SAMPLES:]
        self._frame += 1
        return np.pad(frame.astype(np.float32) / 32768, (0, FRAME_SAMPLES - len(frame)))

    def hear(self, *, quiet: bool) -> None:
        """The agent's frame at the same time: silent in sound and text, or not."""
        if len(self._left):
            return
        self._waited += 1
        self._talking += not quiet
        self._quiet = self._quiet + 1 if quiet else 0

    def _is_time(self) -> bool:
        turn = self._item.turns[len(self.began)]
        if self._waited >= LONGEST_WAIT:
            return True
        if self._agent_speaks and not self._talking:
            return self._waited >= PATIENCE
        return (self._talking if turn.interrupts else self._quiet) >= turn.delay


def converse(
    model: PersonaPlex,
    items: Sequence[Item],
    clips: np.ndarray,
    *,
    batch: int = 64,
    pinned_frames: int = 0,
    sampling: Sampling | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Conversation]:
    """Talk through `items`, `batch` at a time, those of like length together; greedy text unless `sampling` says else.

    With `pinned_frames` a prompt of up to as many stays in view for ever, as in the live engine. Results come in no
    particular order, and do not depend on what was batched with what but for rounding.
    """
    sampling = sampling or model.sampling(text_temperature=0.0)
    duplex = Duplex(model.mimi, Generator(model.lm, model.config, pins=pinned_frames), Ceiling.over(sampling))
    ordered = sorted(items, key=lambda item: (item.expected_frames, item.number))
    for at in range(0, len(ordered), batch):
        group = ordered[at : at + batch]
        yield from _converse(model, duplex, sampling, group, clips)
        say(f"{at + len(group)} of {len(ordered)} conversations")


def _converse(
    model: PersonaPlex, duplex: Duplex, sampling: Sampling, items: Sequence[Item], clips: np.ndarray
) -> list[Conversation]:
    voices = {name: model.load_voice(name) for name in {item.voice for item in items}}
    opened = [
        duplex.open(model.compose(voices[item.voice], item.prompt), seed=item.number, sampling=sampling)
        for item in items
    ]
    state = stack(opened)
    del opened
    users = [User(item, clips) for item in items]
    streams = [TextStream(model.tokenizer) for _ in items]
    text: list[list[tuple[int, str]]] = [[] for _ in items]
    ended: list[int | None] = [None] * len(items)
    tokens, pcm, levels = [], [], []
    frame_index = 0
    while None in ended:
        heard = np.stack([user.say() for user in users])
        frame, state = duplex.step(mx.array(heard), state)
        settle(frame, state)
        drawn, sound = np.array(frame.step.tokens), np.array(frame.pcm)
        level = decibels(sound)
        for i, user in enumerate(users):
            if piece := streams[i].push(int(drawn[i, 0])):
                text[i].append((frame_index, piece))
            user.hear(quiet=bool(level[i] < QUIET_DB) and int(drawn[i, 0]) in (EPAD, PAD))
            if user.done and ended[i] is None:
                ended[i] = frame_index + 1
        tokens.append(drawn[:, 1 : 1 + N_CODEBOOKS].astype(np.uint16))
        pcm.append(pcm16(sound))
        levels.append(level)
        frame_index += 1
    codes, waves, loudness = np.stack(tokens, 1), np.stack(pcm, 1), np.stack(levels, 1)
    return [
        _conversation(item, users[i].began, text[i], loudness[i, :end], codes[i, :end], waves[i, :end])
        for i, (item, end) in enumerate(zip(items, ended, strict=True))
    ]


def _conversation(
    item: Item, began: list[int], text: list[tuple[int, str]], level: np.ndarray, codes: np.ndarray, pcm: np.ndarray
) -> Conversation:
    first = began[-1] if item.listened else len(pcm)
    spoken = tuple((frame, piece) for frame, piece in text if frame < len(level))
    levels = tuple(int(db) for db in level)
    return Conversation(item.number, tuple(began), spoken, levels, codes, pcm[first:].reshape(-1), first)


def decibels(pcm: np.ndarray) -> np.ndarray:
    """Frames [..., 1920] -> their level in dBFS, whole numbers, not below -120."""
    power = np.mean(np.square(pcm, dtype=np.float64), axis=-1)
    return np.asarray(np.maximum(np.rint(10 * np.log10(power + 1e-12)), LOWEST_DB), int)


def save(folder: Path, conversations: Sequence[Conversation]) -> None:
    """Write `conversations.jsonl`, `codes.npz` and the sound as a few `sound-*.flac`."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sound-*.flac"):
        old.unlink()
    conversations = sorted(conversations, key=lambda c: c.number)
    lines, parts, size = [], [[]], 0  # type: ignore[var-annotated]
    for conversation in conversations:
        n_samples = len(conversation.pcm)
        if size + n_samples > _PART_SAMPLES and size:
            parts.append([])
            size = 0
        about = {key: value for key, value in asdict(conversation).items() if key not in ("codes", "pcm")}
        lines.append(json.dumps(about | {"sound": [len(parts) - 1, size, size + n_samples]}))
        parts[-1].append(conversation.pcm)
        size += n_samples
    for i, part in enumerate(parts):
        joined = np.concatenate([np.zeros(0, np.int16), *part]).astype(np.float32) / 32767
        if len(joined):
            write_audio(folder / f"sound-{i:02d}.flac", joined)
    codes = np.concatenate([np.zeros((0, N_CODEBOOKS), np.uint16), *(c.codes for c in conversations)])
    with whole_file(folder / "codes.npz") as name:
        np.savez_compressed(name, codes=codes)
    with whole_file(folder / "conversations.jsonl") as name:  # last: a folder that has it is whole
        name.write_text("\n".join(lines) + "\n")


def load(folder: Path) -> dict[int, Conversation]:
    """What `save` wrote, by the item's number. Raises UsageError when it is not there."""
    about = folder / "conversations.jsonl"
    if not about.is_file():
        raise UsageError(f"{folder} holds no conversations; make them with `evaluate_nano.py generate`")
    codes = np.load(folder / "codes.npz")["codes"]
    sounds = [pcm16(read_audio(path)) for path in sorted(folder.glob("sound-*.flac"))]
    found, at = {}, 0
    for line in about.read_text().splitlines():
        entry = json.loads(line)
        part, start, stop = entry.pop("sound")
        pcm = sounds[part][start:stop] if stop > start else np.zeros(0, np.int16)
        n_frames = len(entry["level"])
        entry["began"], entry["level"] = tuple(entry["began"]), tuple(entry["level"])
        entry["text"] = tuple((frame, piece) for frame, piece in entry["text"])
        found[entry["number"]] = Conversation(**entry, codes=codes[at : at + n_frames], pcm=pcm)
        at += n_frames
    return found
