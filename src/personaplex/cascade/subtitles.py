"""Utterances as subtitles: SubRip (.srt) and WebVTT (.vtt), in cues that can be read while they are shown."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from personaplex.cascade.engine import TimedWord
from personaplex.cascade.transcription import Utterance

LINE_CHARACTERS = 42
"""What a line holds, and a cue two of; the usual measure."""

CUE_SECONDS = 7.0

_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_EAST_ASIAN}][^\s\w]*|[^\s{_EAST_ASIAN}]+")
"""Kana and ideographs stand without spaces: each is a word here, with the marks behind it."""

VTT_HEAD = "WEBVTT\n\n"


class Cue(NamedTuple):
    """Some text, and the seconds from which and to which it is shown."""

    start: float
    end: float
    text: str


def cues(said: Utterance) -> Iterator[Cue]:
    """Cut an utterance into cues of at most two lines and 7 s, between words; a longer word has a cue of its own."""
    begin = at = 0  # the cue's beginning, and the end of the word before, in the text
    shown: float | None = None
    until = said.end
    for word in _timed(said):
        found = said.text.find(word.text, at)  # an engine may write a word in another way in its text
        end = at if found < 0 else found + len(word.text)
        is_full = len(_wrapped(said.text[begin:end])) > 2
        if shown is not None and (is_full or word.end - shown > CUE_SECONDS) and at > begin:
            yield Cue(shown, until, said.text[begin:at].strip())
            begin, shown = at, None
        shown = word.start if shown is None else shown
        at, until = end, word.end
    if rest := said.text[begin:].strip():
        yield Cue(said.start if shown is None else shown, until, rest)


def _timed(said: Utterance) -> Iterator[TimedWord]:
    """Its words; where the engine does not time them, the time is shared out by letters."""
    if said.words:
        yield from said.words
        return
    seconds = (said.end - said.start) / len(said.text)
    for word in _WORD.finditer(said.text):
        yield TimedWord(word[0], said.start + word.start() * seconds, said.start + word.end() * seconds)


def srt(number: int, cue: Cue) -> str:
    """Cue `number`, from 1, of a SubRip file."""
    return f"{number}\n{_times(cue, ',')}\n{_lines(cue.text).replace('-->', '->')}\n\n"


def vtt(cue: Cue) -> str:
    """A cue of a WebVTT file, after `VTT_HEAD`."""
    return f"{_times(cue, '.')}\n{html.escape(_lines(cue.text), quote=False)}\n\n"


def _lines(text: str) -> str:
    return "\n".join(_wrapped(text))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_CHARACTERS, break_on_hyphens=False)


def _times(cue: Cue, point: str) -> str:
    end_ms = max(round(1000 * cue.end), round(1000 * cue.start) + 1)  # a cue that ends as it begins is not shown
    return f"{_clock(round(1000 * cue.start), point)} --> {_clock(end_ms, point)}"


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{ms:03}"
