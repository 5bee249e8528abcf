"""One clip and what an agent made of it -> what is counted of it, as a JSON object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.cascade.engine import TimedWord
from personaplex.errors import AudioError, PersonaPlexError, UsageError
from personaplex.evaluate.duplex.backchannel import divergence, listen
from personaplex.evaluate.duplex.channels import AgentChannel, agent_sound, user_sound
from personaplex.evaluate.duplex.clips import Clip
from personaplex.evaluate.duplex.overlap import before_and_after, overlaps, words_per_minute
from personaplex.evaluate.duplex.speech_spans import in_tenths, is_speaking, speech_spans, within
from personaplex.evaluate.duplex.takeover import latency, takes_turn
from personaplex.evaluate.duplex.transcript import read_json, read_words, write_words
from personaplex.evaluate.hearing import EngineEar
from personaplex.evaluate.result import Failure
from personaplex.evaluate.span import Span
from personaplex.units import SAMPLE_RATE

Human = Mapping[str, Sequence[float]]
"""By a clip's name, how likely people are to say "mm-hm" in each of some equal parts of it."""

SHORT_SECONDS = 1.0
"""An output that is shorter than its input by more was cut off, or does not begin with it."""


@dataclass
class Scorer:
    """Scores clips. `ear` is opened when the first clip without an `output.json` needs it.

    `human` is by subset. `keep_words`: what is recognised is written beside the sound. `heard` counts the clips whose
    words were recognised here.
    """

    ear: Callable[[], EngineEar]
    recogniser_name: str
    human: Mapping[str, Human] = field(default_factory=dict)
    agent_channel: AgentChannel = "auto"
    keep_words: bool = False
    heard: int = field(default=0, init=False)

    def score_all(
        self, clips: Sequence[Clip], say: Callable[[str], None] = lambda _: None
    ) -> tuple[list[dict[str, Any]], list[Failure]]:
        """Items and failures of `clips`: what cannot be scored is told and does not end the rest."""
        items, failures = [], []
        for n, clip in enumerate(clips, 1):
            try:
                items.append(self.score(clip))
            except PersonaPlexError as error:
                failures.append(Failure(clip.id, str(error)))
            say(f"scored {n} of {len(clips)} clips")
        return items, failures

    def score(self, clip: Clip) -> dict[str, Any]:
        """What is counted of one clip. Raises AudioError, UsageError or EngineError for one that cannot be scored."""
        agent = agent_sound(clip.results / "output.wav", clip.folder / "input.wav", self.agent_channel)
        counted = {
            "pause": self._pause,
            "turn": self._turn,
            "interruption": self._interruption,
            "backchannel": self._backchannel,
        }.get(clip.task, self._overlap)(clip, agent)
        return {
            "item": clip.id,
            "subset": clip.subset,
            "task": clip.task,
            "seconds": round(len(agent) / SAMPLE_RATE, 3),
            "missing_seconds": _missing(clip, agent, self.agent_channel),
            **counted,
        }

    def _pause(self, clip: Clip, agent: np.ndarray) -> dict[str, Any]:
        words = self._words(clip, agent)
        return {**_said(words), "takeover": takes_turn(words)}

    def _turn(self, clip: Clip, agent: np.ndarray) -> dict[str, Any]:
        user_end = clip.user_end()
        _check_inside(Span(user_end, user_end), agent, clip.folder / "turn_taking.json")
        words = self._words(clip, agent)
        return {
            **_said(words),
            "takeover": takes_turn(words),
            "user_end": user_end,
            "latency": latency(words, user_end),
        }

    def _interruption(self, clip: Clip, agent: np.ndarray) -> dict[str, Any]:
        interruption = clip.interruption()
        _check_inside(interruption, agent, clip.folder / "interrupt.json")
        # The benchmark's own script does not let the recogniser hear what was said before.
        words = self._words(clip, agent, begin=interruption.end)
        spans = speech_spans(agent)
        return {
            **_said(words),
            "takeover": takes_turn(words),
            "user_end": interruption.end,
            "latency": latency(words, interruption.end),
            "spoke": is_speaking(spans, interruption.start),
            "still_talking": is_speaking(spans, interruption.end),
        }

    def _backchannel(self, clip: Clip, agent: np.ndarray) -> dict[str, Any]:
        seconds = len(agent) / SAMPLE_RATE
        spans = in_tenths(speech_spans(agent), seconds)
        heard = listen(spans, self._words(clip, agent) if spans else [], seconds)
        human = self.human.get(clip.subset, {}).get(clip.name)
        return {
            "takeover": heard.takeover,
            "backchannels": [list(span) for span in heard.spans],
            "frequency": heard.frequency,
            "frequency_2025": heard.frequency_2025,
            "jsd": None if human is None else divergence(heard, human),
        }

    def _overlap(self, clip: Clip, agent: np.ndarray) -> dict[str, Any]:
        event = clip.event()
        user = user_sound(clip.folder / "input.wav", self.agent_channel)
        _check_inside(event, user, clip.folder / "metadata.json")
        timing = overlaps(speech_spans(user), speech_spans(agent), event)
        words = self._words(clip, agent)
        before, after = before_and_after(words, event.end)
        paces = {"before": words_per_minute(before), "after": words_per_minute(after), "clean": self._clean_pace(clip)}
        return {
            **_said(words),
            "event": list(event),
            "stops": [list(span) for span in timing.stops],
            "answers": [list(span) for span in timing.answers],
            "spoke": timing.spoke,
            "silent_after": None if timing.silent is None else timing.silent - event.start,
            "answered_after": None if timing.answered is None else timing.answered - event.end,
            "words_per_minute": paces,
        }

    def _clean_pace(self, clip: Clip) -> float | None:
        """How fast the agent speaks where the event is left out; None where nobody tried."""
        path = clip.results / "clean_output.wav"
        if not path.exists():
            return None
        agent = agent_sound(path, clip.folder / "clean_input.wav", self.agent_channel)
        return words_per_minute(self._words(clip, agent, name="clean_output.json"))

    def _words(self, clip: Clip, agent: np.ndarray, begin: float = 0.0, name: str = "output.json") -> list[TimedWord]:
        path = clip.results / name
        if path.exists():
            return read_words(path)
        words = self.ear().hear_words(agent, begin)
        self.heard += 1
        if self.keep_words:
            write_words(path, words, recogniser=self.recogniser_name)
        return words


def _said(words: Sequence[TimedWord]) -> dict[str, Any]:
    return {"words": len(words), "text": " ".join(word.text for word in words)}


def _check_inside(span: Span, sound: np.ndarray, path: Path) -> None:
    seconds = len(sound) / SAMPLE_RATE
    if not within(span, seconds + SHORT_SECONDS):
        raise UsageError(
            f"{path}: {span.start:g} to {span.end:g} s is not in a recording of {seconds:.2f} s; "
            "expected seconds, the start first"
        )


def _missing(clip: Clip, agent: np.ndarray, agent_channel: AgentChannel) -> float | None:
    """Seconds that the output is shorter than its input; None where the input is not there to tell."""
    try:
        user = user_sound(clip.folder / "input.wav", agent_channel)
    except AudioError:
        return None
    return round(max(0.0, (len(user) - len(agent)) / SAMPLE_RATE), 3)


def read_human(path: Path) -> Human:
    """The benchmark's `icc_gt_distribution.json`: by a clip's name, a list of numbers. Raises UsageError."""
    entry = read_json(path)
    try:
        human = {str(name): [float(share) for share in shares] for name, shares in entry.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no distribution; expected numbers by a clip's name") from error
    for name, shares in human.items():
        if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise UsageError(
                f"{path}: the numbers of clip {name} are no distribution; expected some above 0, none below"
            )
    return human
