"""What is said in a recording of any length: cut where nobody speaks, and recognised piece by piece.

No more than a piece is held, so hours take no more memory than a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np
import soxr

from personaplex.cascade.ear import LEAD_SECONDS
from personaplex.cascade.engine import Recogniser, TimedWord, as_error
from personaplex.turns import CHUNK_SECONDS, UserTurn, VoiceActivity
from personaplex.units import SAMPLE_RATE
from personaplex.vad import Detector, new_detector

RULE = VoiceActivity(speech_seconds=0.15, silence_seconds=0.6)
"""Where a recording is cut: as the cascade's conversations begin and end a turn."""

LONGEST_SECONDS = 30.0
"""Who speaks for longer without a pause is cut where speech is least probable, in the second half of that time."""

_PIECE_SECONDS = 0.1
_CHUNK = round(CHUNK_SECONDS * SAMPLE_RATE)


class Utterance(NamedTuple):
    """What somebody said: seconds in the recording, `words` and `language` (ISO 639-1) where the engine knows them."""

    start: float
    end: float
    text: str
    words: tuple[TimedWord, ...] = ()
    language: str | None = None


class Stretch(NamedTuple):
    """Sound in which somebody speaks: float32 [S] at 24 kHz, from `start` seconds on."""

    start: float
    pcm: np.ndarray


class Counted:
    """Pieces of sound, and how many samples they had so far."""

    def __init__(self, pieces: Iterable[np.ndarray]) -> None:
        self._pieces = pieces
        self.n_samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for piece in self._pieces:
            self.n_samples += len(piece)
            yield piece


def transcribe(
    pieces: Iterable[np.ndarray], recogniser: Recogniser, language: str | None = None, detector: Detector | None = None
) -> Iterator[Utterance]:
    """Recognise float32 [S] at 24 kHz, in pieces of any size; each utterance as soon as it is over.

    Without a language the engine guesses, utterance by utterance. Raises UsageError for a language that the engine
    does not have, EngineError when it fails.
    """
    for start, pcm in stretches(pieces, detector or new_detector()):
        with closing(recogniser.listen(language)) as listening:
            try:
                # In small pieces: some engines keep Python's lock while they hear one, and others' sound waits for it.
                heard_at = soxr.resample(pcm, SAMPLE_RATE, recogniser.rate)
                n_at_once = round(_PIECE_SECONDS * recogniser.rate)
                for at in range(0, len(heard_at), n_at_once):
                    listening.push(heard_at[at : at + n_at_once])
                heard = listening.finish()
            except Exception as error:  # a recogniser is somebody else's program
                raise as_error(error, "recogniser") from error
        if not heard.text:
            continue
        words = tuple(TimedWord(word.text, word.start + start, word.end + start) for word in heard.words)
        first, last = (words[0].start, words[-1].end) if words else (start, start + len(pcm) / SAMPLE_RATE)
        yield Utterance(first, last, heard.text, words, heard.language)


def stretches(pieces: Iterable[np.ndarray], detector: Detector, rule: VoiceActivity = RULE) -> Iterator[Stretch]:
    """Where somebody speaks in float32 [S] at 24 kHz; no sound is in two stretches."""
    lead, most = (math.ceil(s / CHUNK_SECONDS) for s in (LEAD_SECONDS + rule.speech_seconds, LONGEST_SECONDS))
    turn, sound = UserTurn(), np.zeros(0, np.float32)
    probabilities: list[float] = []  # of the chunks in `sound`, as far as they are known
    first = 0  # of them, in the recording
    for piece in pieces:
        sound = np.concatenate([sound, piece])
        for probability in detector.push(piece):
            probabilities.append(probability)
            before, turn = turn, turn.after(probability, rule)
            if before.speaking and not turn.speaking:
                cut = len(probabilities)
            elif turn.speaking and len(probabilities) >= most:
                cut = most // 2 + int(np.argmin(probabilities[most // 2 :])) + 1
            else:
                cut = 0
            if cut and max(probabilities[:cut]) >= rule.offset:  # or a cut in a pause would leave a stretch of silence
                yield Stretch(first * CHUNK_SECONDS, sound[: cut * _CHUNK])
            elif not turn.speaking:
                cut = max(0, len(probabilities) - lead)
            sound, probabilities, first = sound[cut * _CHUNK :], probabilities[cut:], first + cut
    if turn.speaking and max(probabilities, default=0) >= rule.offset:
        yield Stretch(first * CHUNK_SECONDS, sound)
