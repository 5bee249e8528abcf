"""The live engine against the library: the same sound, seed and sampling must give the same conversation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from personaplex.conversation import Settings
from personaplex.evaluate.prompts.asking import Answer
from personaplex.evaluate.verification.checks import Finding
from personaplex.model import OpeningOptions, PersonaPlex
from personaplex.models.streams import AGENT, TEXT
from personaplex.reply import Reply
from personaplex.units import FRAME_SAMPLES

CUT = "\N{REPLACEMENT CHARACTER} "

MOST_DIFFERENCE = 1e-3
"""Between two samples of the same codes: rounding makes less than a hundredth of it, another code far more."""


@dataclass(frozen=True)
class Offline:
    """What the library says to an answer's user: all at once (`respond`), and the tokens of `respond_realtime`."""

    reply: Reply
    realtime: np.ndarray


def run_offline(model: PersonaPlex, answer: Answer, settings: Settings) -> Offline:
    """Give the model the user of `answer` again, both ways, for as many frames. Raises what the library raises."""
    options: OpeningOptions = {"seed": answer.seed}
    if settings.voice is not None:
        options["voice"] = settings.voice
    if settings.prompt is not None:
        options["prompt"] = settings.prompt
    changes = settings.sampling or {}
    options["sampling"] = model.sampling(**changes) if isinstance(changes, dict) else changes  # type: ignore[typeddict-item]
    reply = model.respond(answer.user, max_steps=0, stop_on_silence=False, **options)
    pieces = np.array_split(answer.user, 7)  # not frame by frame: whoever sends sound cuts it anywhere
    realtime = np.stack([frame.tokens for frame in model.respond_realtime(pieces, **options)], axis=1)
    return Offline(reply, realtime)


def agreement(offline: Offline, streamed: Answer) -> Finding:
    """Whether all three said the same: tokens, text and sound. The engine tells no tokens, but their sound."""
    reply = offline.reply
    at = {
        "tokens (respond, respond_realtime)": _first(_spoken(reply.tokens), _spoken(offline.realtime)),
        "sound (respond, live engine)": _first_sound(reply.audio, streamed.agent),
    }
    reasons = [f"{what} differ from frame {frame} on" for what, frame in at.items() if frame is not None]
    # Both end where the sound does; only the library shows a character of which that cut off the rest.
    if reply.text.rstrip(CUT) != streamed.all_said.rstrip(CUT):
        reasons.append(f"text (respond, live engine): {reply.text!r} and {streamed.all_said!r}")
    return Finding(not reasons, "; ".join(reasons))


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
