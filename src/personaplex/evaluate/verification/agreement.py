"""The live engine against the library: the same sound, seed and sampling must give the same conversation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from personaplex.conversation import Settings
from personaplex.evaluate.prompts.asking import Answer
from personaplex.evaluate.statistics import word_errors
from personaplex.evaluate.verification.checks import Finding
from personaplex.evaluate.words import words_said
from personaplex.model import OpeningOptions, PersonaPlex
from personaplex.models.streams import AGENT, TEXT
from personaplex.reply import Reply
from personaplex.units import FRAME_SAMPLES

CUT = "\N{REPLACEMENT CHARACTER} "

MOST_DIFFERENCE = 1e-3
"""Between two samples of the same codes: rounding makes less than a hundredth of it, another code far more."""

MOST_REWORDED = 0.5
"""Word errors over words of the longer one, of two answers that are the same but for rounding."""


@dataclass(frozen=True)
class Offline:
    """What the library says to an answer's user.

    `reply` is that of `respond_stream` read to its end, `chunks` the same as they came, joined: sound and text; `text`
    (frame, text completed in it); `realtime` [17, T] the tokens of `respond_realtime`.
    """

    reply: Reply
    chunks: tuple[np.ndarray, str]
    text: tuple[tuple[int, str], ...]
    realtime: np.ndarray

    def said(self, began: int) -> str:
        """What is said from a frame on."""
        return "".join(text for frame, text in self.text if frame >= began).strip()


def run_offline(model: PersonaPlex, answer: Answer, settings: Settings) -> Offline:
    """Give the model the user of `answer` again, both ways, for as many frames. Raises what the library raises."""
    options: OpeningOptions = {"seed": answer.seed}
    if settings.voice is not None:
        options["voice"] = settings.voice
    if settings.prompt is not None:
        options["prompt"] = settings.prompt
    changes = settings.sampling or {}
    options["sampling"] = model.sampling(**changes) if isinstance(changes, Mapping) else changes
    stream = model.respond_stream(answer.user, max_steps=0, stop_on_silence=False, chunk_frames=1, **options)
    chunks = list(stream)
    joined = np.concatenate([chunk.audio for chunk in chunks]), "".join(chunk.text for chunk in chunks).strip()
    text = tuple((chunk.first_frame, chunk.text) for chunk in chunks)
    pieces = np.array_split(answer.user, 7)  # not frame by frame: whoever sends sound cuts it anywhere
    realtime = np.stack([frame.tokens for frame in model.respond_realtime(pieces, **options)], axis=1)
    return Offline(stream.reply, joined, text, realtime)


def is_exact() -> bool:
    """Whether the engine's arithmetic is the library's to the last bit or nearly: it steps several conversations."""
    return bool(mx.default_device() == mx.cpu)


def agreement(offline: Offline, streamed: Answer, *, exact: bool | None = None) -> Finding:
    """Whether all say the same: tokens, text and sound. The engine tells no tokens, but their sound.

    Where it is not `exact` (on a GPU, by default), a step of many conversations rounds otherwise than a step of one,
    and a token that hangs in the balance falls to the other side: there live engine and library need not use the same
    words for the same answer, but both must give it: with expected words both must be right, without them at most
    `MOST_REWORDED` of the words may differ.
    """
    reply, (sound, text) = offline.reply, offline.chunks
    own = {
        "tokens (respond, respond_realtime)": _first(_spoken(reply.tokens), _spoken(offline.realtime)),
        "sound (respond, its chunks)": _first_sound(reply.audio, sound),
    }
    reasons = [f"{what} differ from frame {frame} on" for what, frame in own.items() if frame is not None]
    if text != reply.text:
        reasons.append(f"text (respond, its chunks): {reply.text!r} and {text!r}")
    differ = []
    if (frame := _first_sound(reply.audio, streamed.agent)) is not None:
        differ.append(f"sound (respond, live engine) differ from frame {frame} on")
    # Both end where the sound does; only the library shows a character of which that cut off the rest.
    if reply.text.rstrip(CUT) != streamed.all_said.rstrip(CUT):
        differ.append(f"text (respond, live engine): {reply.text!r} and {streamed.all_said!r}")
    expected = streamed.question.expectation
    one, other = offline.said(streamed.began), streamed.said
    same = expected.is_met(one) and expected.is_met(other) if expected.wanted else _is_reworded(one, other)
    if (is_exact() if exact is None else exact) or not same:
        reasons += differ
    return Finding(not reasons, "; ".join(reasons))


def _is_reworded(one: str, other: str) -> bool:
    """Whether two texts, neither of them empty, are nearly the same words."""
    mine, theirs = words_said(one), words_said(other)
    return bool(mine and theirs) and word_errors(mine, theirs) <= MOST_REWORDED * max(len(mine), len(theirs))


def _spoken(tokens: np.ndarray) -> np.ndarray:
    return tokens[TEXT : AGENT.stop]


def _first(one: np.ndarray, other: np.ndarray) -> int | None:
    """The first column in which two arrays [9, T] differ; the end of the shorter, if one is longer."""
    n = min(one.shape[1], other.shape[1])
    differ = np.flatnonzero((one[:, :n] != other[:, :n]).any(axis=0))
    return int(differ[0]) if len(differ) else None if one.shape == other.shape else n


def _first_sound(one: np.ndarray, other: np.ndarray) -> int | None:
    n = min(len(one), len(other))
    differ = np.flatnonzero(~(np.abs(one[:n] - other[:n]) <= MOST_DIFFERENCE))
    if len(differ):
        return int(differ[0]) // FRAME_SAMPLES
    return None if len(one) == len(other) else math.ceil(n / FRAME_SAMPLES)
