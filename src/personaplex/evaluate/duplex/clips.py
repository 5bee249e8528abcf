"""The benchmark's folders: which clips there are, of which task, and what is annotated in each.

A subset is a folder of clips; its name tells its task. A clip is a folder with `input.wav`, an annotation, and, once an
agent was heard, `output.wav` and the words in it (`output.json`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from personaplex.errors import UsageError
from personaplex.evaluate.duplex.transcript import read_json
from personaplex.evaluate.span import Span

Task = Literal[
    "pause",
    "backchannel",
    "turn",
    "interruption",
    "user interruption",
    "user backchannel",
    "talking to other",
    "background speech",
]
"""Four of v1.0, then four of v1.5, all of which have an event that overlaps the agent's speech."""

TASKS: tuple[Task, ...] = get_args(Task)
OVERLAPS: tuple[Task, ...] = TASKS[4:]
_DEEPEST = 3
"""How many folders below the one that is named a subset may lie: `data/v1.0/icc_backchannel`."""

_NAMES: tuple[tuple[str, Task], ...] = (
    ("user_backchannel", "user backchannel"),
    ("talking_to", "talking to other"),
    ("background", "background speech"),
    ("synthetic_user_interruption", "interruption"),
    ("interruption", "user interruption"),
    ("turn_taking", "turn"),
    ("backchannel", "backchannel"),
    ("pause", "pause"),
)
"""What a subset's name contains; the first that fits."""


@dataclass(frozen=True)
class Clip:
    """One clip: its annotation and input are in `folder`, what an agent made of it in `results`."""

    subset: str
    task: Task
    name: str
    folder: Path
    results: Path

    @property
    def id(self) -> str:
        """Its name in reports."""
        return f"{self.subset}/{self.name}"

    def user_end(self) -> float:
        """When the user's turn ended, of a turn-taking clip. Raises UsageError without the annotation."""
        return _timestamp(self.folder / "turn_taking.json", 0)[0]

    def interruption(self) -> Span:
        """From when to when the user interrupted, of an interruption clip of v1.0. Raises UsageError."""
        return Span(*_timestamp(self.folder / "interrupt.json", 0))

    def event(self) -> Span:
        """From when to when the second voice is heard, of a clip of v1.5. Raises UsageError."""
        return Span(*_timestamp(self.folder / "metadata.json", None))


def _timestamp(path: Path, index: int | None) -> tuple[float, float]:
    entry = read_json(path)
    try:
        start, end = entry["timestamps"] if index is None else entry[index]["timestamp"]
        return float(start), float(end)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        wanted = '{"timestamps": [start, end]}' if index is None else '[{"timestamp": [start, end]}]'
        raise UsageError(f"{path} does not say when; expected {wanted}, in seconds") from error


def find_clips(
    root: Path, results: Path | None = None, task: Task | None = None, only: Collection[Task] = TASKS
) -> list[Clip]:
    """Every clip below `root`: a subset, or a folder with subsets in it, however the benchmark was unpacked.

    `results`: what agents made of the clips lies in `results/SUBSET/CLIP` and not beside their inputs. `task`: what the
    subsets are, if their names do not tell. `only`: the tasks that are wanted. In the order of `TASKS`. Raises
    UsageError when there is nothing that looks like the benchmark, or nothing of it that is wanted.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; name one with Full-Duplex-Bench's clips, or make one (--make)")
    subsets = [subset for subset in _subsets(root, _DEEPEST, task) if not _is_result(subset, root, results)]
    names = [subset.resolve().name for subset in subsets]
    found: list[Clip] = []
    for subset, name in zip(subsets, names, strict=True):
        # v1.0 and v1.5 lie side by side, and may have a subset of the same name.
        unique = name if names.count(name) == 1 else f"{subset.resolve().parent.name}/{name}"
        found += _clips(subset, unique, results, task)
    if not found:
        raise UsageError(
            f"{root} holds no clips: expected SUBSET/CLIP/input.wav, such as candor_turn_taking/1/input.wav; "
            "a subset of another name needs --task"
        )
    wanted = sorted((clip for clip in found if clip.task in only), key=lambda clip: TASKS.index(clip.task))
    if not wanted:
        raise UsageError(f"{root} has clips of {', '.join(sorted({clip.task for clip in found}))} only")
    return wanted


def task_of(subset: str) -> Task | None:
    """The task that a subset's name tells; None for another name."""
    name = re.sub(r"[^a-z]+", "_", subset.lower())
    return next((task for part, task in _NAMES if part in name), None)


def _subsets(folder: Path, depth: int, task: Task | None) -> Iterator[Path]:
    inside = _folders(folder)
    if (task or task_of(folder.resolve().name)) and any(_is_clip(clip) for clip in inside):
        yield folder
    elif depth:
        for below in inside:
            yield from _subsets(below, depth - 1, task)


def _is_result(subset: Path, root: Path, results: Path | None) -> bool:
    """Whether a subset holds what agents made of the clips, in a folder among theirs."""
    if results is None or results.resolve() == root.resolve():
        return False
    return results.resolve().is_relative_to(root.resolve()) and subset.resolve().is_relative_to(results.resolve())


def _clips(subset: Path, name: str, results: Path | None, task: Task | None) -> Iterator[Clip]:
    known = task or task_of(subset.resolve().name)
    assert known is not None
    for folder in sorted(_folders(subset), key=_in_order):
        here = known
        if task is None and known == "user interruption" and (folder / "interrupt.json").exists():
            here = "interruption"  # both versions have a subset of that name; their annotations differ
        yield Clip(name, here, folder.name, folder, folder if results is None else results / name / folder.name)


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )  # __MACOSX, among others


def _is_clip(folder: Path) -> bool:
    return (folder / "input.wav").exists() or (folder / "output.wav").exists()


def _in_order(folder: Path) -> tuple[int, str]:
    return (int(folder.name), "") if folder.name.isdecimal() else (1 << 62, folder.name)
