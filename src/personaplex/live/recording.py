"""A live conversation on disk: both speakers in a stereo file, and what was said when in a JSON file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from personaplex.audio import OUTPUT_FORMATS, audio_file
from personaplex.errors import OutputError, UsageError
from personaplex.files import check_writable, whole_file
from personaplex.steps import StepMeasure, StepRecord
from personaplex.units import SAMPLE_RATE

_OTHER = "choose another name for --record"


def check_recording(path: Path) -> None:
    """Raise UsageError or OutputError if `path`, or the JSON file beside it, could not be written, or is another's."""
    if path.suffix.lower() not in (".wav", ".flac"):
        raise UsageError(f"--record {path}: the suffix must be .wav or .flac")
    check_alone(path, *(path.with_suffix(suffix) for suffix in OUTPUT_FORMATS if path.with_suffix(suffix).exists()))
    beside = path.with_suffix(".json")
    if beside.is_file() and not path.exists():
        raise UsageError(
            f"what is said in {path} goes into {beside}, which is there and is of something else; {_OTHER}"
        )
    check_writable(path)
    check_writable(beside)


def check_alone(path: Path, *others: Path) -> None:
    """Raise UsageError if the JSON file of the recording `path` would be taken for that of one of the others."""
    for other in others:
        if other.resolve() != path.resolve() and other.with_suffix("").resolve() == path.with_suffix("").resolve():
            beside = path.with_suffix(".json")
            raise UsageError(f"what is said in {path} goes into {beside}, which is for {other}; {_OTHER}")


class Recording:
    """Agent left, user right, as long as it is open; both files appear when it is closed, or neither does.

    `about` heads the JSON file. When the disk is full, whatever is being written raises OutputError, once: nothing is
    left behind, and what follows is ignored.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        check_recording(path)
        self.path = path
        self._about = about
        self._events: list[dict[str, Any]] = []
        self._at: list[float] = []
        self._measures: list[StepMeasure] = []
        self._n_samples = 0
        self._stack = ExitStack()
        self._write = self._stack.enter_context(audio_file(path, channels=2))
        self._gone = False

    def add(self, agent: np.ndarray, user: np.ndarray) -> None:
        """Write what was audible, [S] each, of the same time."""
        if self._gone:
            return
        try:
            self._write(np.stack([agent, user], axis=1))
        except (OSError, RuntimeError) as error:
            self._give_up(error)
        self._n_samples += len(agent)

    def note(self, at: float, what: str, **more: Any) -> None:
        """Remember that `what` happened `at` so many seconds into the recording."""
        self._events.append({"at": round(at, 3), "event": what, **more})

    def step(self, at: float, measure: StepMeasure) -> None:
        """Remember what the model tells of the step whose frame is heard `at` so many seconds into the recording."""
        self._at.append(at)
        self._measures.append(measure)

    def close(self, **summary: Any) -> None:
        """Finish both files, with `summary` in the second. Harmless when nothing is being written any more."""
        if self._gone:
            return
        self._gone = True
        events = sorted(self._events, key=lambda event: event["at"])
        report = {**self._about, "seconds": round(self._n_samples / SAMPLE_RATE, 3), **summary, "events": events}
        head = json.dumps(report, indent=1, ensure_ascii=False).removesuffix("\n}")
        # A column is one line: thousands of numbers, each on its own, would hide the rest from whoever reads it.
        columns = StepRecord(self._at, self._measures).as_json()
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(column)}" for name, column in columns.items())
        steps = f',\n "steps": {{\n{lines}\n }}' if self._at else ""
        with self._stack, whole_file(self.path.with_suffix(".json")) as temporary:
            temporary.write_text(f"{head}{steps}\n}}\n", encoding="utf-8")

    def _give_up(self, error: Exception) -> None:
        self._gone = True
        try:
            self._stack.__exit__(type(error), error, error.__traceback__)
        except OutputError as told:
            raise OutputError(f"{told}; the conversation is not recorded any more") from error
        raise OutputError(f"cannot write {self.path}: {error}") from error
