"""All of it together: clips and what an agent made of them -> one result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from personaplex.errors import AudioError, UsageError
from personaplex.evaluate.duplex.clips import Clip
from personaplex.evaluate.duplex.scores import SHORT_SECONDS, Human, Scorer, read_human
from personaplex.evaluate.duplex.synthetic import ABOUT, HUMAN
from personaplex.evaluate.duplex.table import left_out, rows, with_values
from personaplex.evaluate.duplex.transcript import read_json
from personaplex.evaluate.result import Failure, Result
from personaplex.vad import new_detector


def find_human(clips: Sequence[Clip], chosen: Path | None = None) -> dict[str, Human]:
    """People's backchannels by subset: from the `chosen` file, or from one of the benchmark's name beside the clips.

    Raises UsageError for a file that is no distribution.
    """
    found = {}
    for clip in clips:
        if clip.task == "backchannel" and clip.subset not in found:
            subset = clip.folder.parent
            places = [chosen] if chosen is not None else [subset / HUMAN, subset.parent / HUMAN]
            for path in places:
                if path.exists() or path == chosen:
                    found[clip.subset] = read_human(path)
                    break
    return found


def find_origin(clips: Sequence[Clip]) -> dict[str, Any] | None:
    """How the set of these clips was made, if it was made here."""
    for folder in {clip.folder.parent.parent for clip in clips}:
        with suppress(UsageError):  # a file of that name may be anybody's
            entry = read_json(folder / ABOUT)
            return entry if isinstance(entry, dict) else None
    return None


def evaluate(
    clips: Sequence[Clip],
    scorer: Scorer,
    about: Mapping[str, Any],
    failures: Sequence[Failure] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Score `clips`, but for those among `failures`; every clip is in the denominator of its subset's first row.

    When none can be scored, the result's `error` says so.
    """
    failed = {failure.item for failure in failures}
    items, more = scorer.score_all([clip for clip in clips if clip.id not in failed], say)
    known = {subset for subset, human in scorer.human.items() if human}
    found = {
        **about,
        "synthetic": find_origin(clips),
        "clips": len(clips),
        "detector": type(new_detector()).__name__,
        "recogniser": scorer.recogniser_name if scorer.heard else None,
        "words_recognised": scorer.heard,
        "shorter_than_input": sum((item["missing_seconds"] or 0.0) > SHORT_SECONDS for item in items),
        "left_out": left_out(clips, known),
    }
    failures = [*failures, *more]
    error = None
    if failures and not items:
        error = AudioError(f"none of {len(clips)} clips could be measured; the first: {failures[0].reason}")
    return Result("duplex", found, rows(clips, items), with_values(items), failures, error)
