"""What one conversation shows: when the agent spoke, what it said to a turn, when it fell silent."""

from __future__ import annotations

import math

import numpy as np

from personaplex.evaluate.nano.conversation import QUIET_DB, Conversation
from personaplex.evaluate.nano.items import Item
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

ANSWER_FRAMES = 38
"""An answer begins within 3 s of the user's end, or it never comes."""
GREETING_GAP = 19
"""Frames without a word (1.5 s) that end a greeting."""
SILENT_FRAMES = 4
"""Frames in a row below the threshold that make a silence: shorter ones are the gaps within words."""
BACKCHANNELS = frozenset({"mm", "hmm", "mhm", "uh", "huh", "yeah", "right", "okay"})
"""Words that say nothing but `go on`: the agent may say them while it listens."""


def begins(item: Item, conversation: Conversation, turn: int) -> int:
    """Sample at which the user begins to speak in `turn`, from the conversation's start."""
    return conversation.began[turn] * FRAME_SAMPLES + item.turns[turn].speech_begin


def ends(item: Item, conversation: Conversation, turn: int) -> int:
    """Sample at which the user's last word of `turn` ends."""
    return conversation.began[turn] * FRAME_SAMPLES + item.turns[turn].speech_end


def words(conversation: Conversation) -> list[tuple[int, str]]:
    """The agent's words, each with the frame in which it begins."""
    found: list[tuple[int, str]] = []
    for frame, piece in conversation.text:
        for i, word in enumerate(piece.split(" ")):
            if i or not found:
                found.append((frame, word))
            elif word:
                found[-1] = (found[-1][0], found[-1][1] + word)
    return [(frame, word) for frame, word in found if word.strip()]


def answer_words(conversation: Conversation, turn: int) -> list[tuple[int, str]]:
    """The agent's words from the begin of the user's `turn` to that of the next."""
    last = len(conversation.began) - 1
    stop = conversation.began[turn + 1] if turn < last else len(conversation.level)
    return [(frame, word) for frame, word in words(conversation) if conversation.began[turn] <= frame < stop]


def answer(conversation: Conversation, turn: int) -> str:
    """What the agent says to `turn`."""
    return " ".join(word for _, word in answer_words(conversation, turn))


def first_word(conversation: Conversation, turn: int) -> int | None:
    """Frame in which the answer to `turn` begins; backchannels are no answer unless nothing follows them."""
    spoken = answer_words(conversation, turn)
    real = [frame for frame, word in spoken if word not in BACKCHANNELS]
    begun = real or [frame for frame, _ in spoken]
    return begun[0] if begun else None


def is_premature(item: Item, conversation: Conversation, turn: int) -> bool:
    """Whether the answer begins more than a frame before the user's last word has ended."""
    first = first_word(conversation, turn)
    return first is not None and first * FRAME_SAMPLES < ends(item, conversation, turn) - FRAME_SAMPLES


def is_missing(item: Item, conversation: Conversation, turn: int) -> bool:
    """Whether no answer has begun 3 s after the user's end."""
    first = first_word(conversation, turn)
    return first is None or first * FRAME_SAMPLES > ends(item, conversation, turn) + ANSWER_FRAMES * FRAME_SAMPLES


def delay_ms(item: Item, conversation: Conversation, turn: int) -> float | None:
    """Milliseconds from the user's end to the answer's first word."""
    first = first_word(conversation, turn)
    return None if first is None else 1000 * (first * FRAME_SAMPLES - ends(item, conversation, turn)) / SAMPLE_RATE


def speaks_unasked(item: Item, conversation: Conversation) -> bool:
    """Whether any word is said after the greeting, if there is one, in a call in which nobody asks anything."""
    frames = [frame for frame, _ in words(conversation)]
    if not frames or not item.greets:
        return bool(frames)
    gaps = np.diff(frames) >= GREETING_GAP
    # Who greets after seconds of waiting has been provoked by something else.
    return bool(gaps.any()) or frames[0] > 2 * ANSWER_FRAMES


def stop_ms(item: Item, conversation: Conversation, turn: int) -> float | None:
    """Milliseconds from the begin of the user's `turn` until the agent's sound stops.

    None if the agent was not speaking when the user began; infinite if it never stops.
    """
    begin = begins(item, conversation, turn)
    first = begin // FRAME_SAMPLES
    loud = [level >= QUIET_DB for level in conversation.level]
    if not any(loud[max(0, first - 1) : first + 1]):
        return None
    for frame in range(first, len(loud)):
        if not any(loud[frame : frame + SILENT_FRAMES]):
            return max(0.0, 1000 * (frame * FRAME_SAMPLES - begin) / SAMPLE_RATE)
    return math.inf


def sound_of_answer(conversation: Conversation) -> np.ndarray:
    """The last answer's samples (int16 [S]), silence around it cut; empty when it made no sound."""
    frames = conversation.pcm.reshape(-1, FRAME_SAMPLES)
    loud = np.flatnonzero(np.array(conversation.level[conversation.pcm_from :]) >= QUIET_DB)
    if not len(loud):
        return np.zeros(0, np.int16)
    return frames[max(0, loud[0] - 2) : loud[-1] + 3].reshape(-1)
