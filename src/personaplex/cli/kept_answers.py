"""Answers of an evaluation kept as recordings: just what `talk --record` writes, so that `report` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personaplex.files import check_writable, make_folder

if TYPE_CHECKING:
    from personaplex.conversation import Settings
    from personaplex.evaluate.prompts.asking import Answer

SUFFIX = ".flac"
LONGEST_NAME = 100
"""Characters: a question may be longer than the name of a file can be."""


class KeptAnswers:
    """A folder of them. It is made, and a place that cannot be written is known at once. Raises OutputError."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        make_folder(folder, "--keep")
        check_writable(folder / f"answer{SUFFIX}")
        self._folder, self._about = folder, about
        self._names = set[str]()

    def keep(self, answer: Answer, settings: Settings, heard: str | None, asked_heard: str | None) -> str:
        """Write a recording and its JSON file; the recording's name. `heard` are a recogniser's words, if known.

        Raises OutputError.
        """
        from personaplex.live.recording import Recording
        from personaplex.units import FRAME_SECONDS

        question = answer.question
        about = {
            "left": "agent",
            "right": "user",
            **self._about,
            "question": question.say or (question.audio.name if question.audio else question.name),
            "expected": question.expectation.described(),
            "voice": settings.voice,
            "role": settings.prompt,
            "seed": answer.seed,
            "heard": heard,
        }
        path = self._folder / f"{self._name(answer.name)}{SUFFIX}"
        recording = Recording(path, {name: value for name, value in about.items() if value not in (None, "")})
        recording.add(answer.agent, answer.user)
        if asked := question.say or asked_heard:
            recording.note(answer.began * FRAME_SECONDS, "user text", text=asked)
        for frame, text in answer.text:
            recording.note(frame * FRAME_SECONDS, "agent text", text=text)
        recording.close()
        return path.name

    @property
    def n(self) -> int:
        """How many are kept."""
        return len(self._names)

    def _name(self, wanted: str) -> str:
        """A file's name that no other answer has."""
        own = "".join(c if c.isalnum() else "-" for c in wanted).strip("-")
        own, n = own if len(own) <= LONGEST_NAME else f"{own[: LONGEST_NAME // 2]}-{own[-LONGEST_NAME // 2 :]}", 1
        name = own
        while name in self._names:
            n += 1
            name = f"{own}-{n}"
        self._names.add(name)
        return name
