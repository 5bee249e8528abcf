"""What was counted of every clip -> rows of numbers, and in words what they leave out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from personaplex.evaluate.duplex.clips import OVERLAPS, Clip
from personaplex.evaluate.duplex.takeover import clamped
from personaplex.evaluate.row import Row, mean, share

Item = Mapping[str, Any]

LEFT_OUT = (
    "the relevance of an answer after an interruption, 0 to 5 (v1.0): a language model judges it",
    "what the agent did in an overlap: responded, resumed, was uncertain, or none of these (v1.5): a language model "
    "judges it",
    "UTMOSv2, pitch and loudness before and after an overlap, and their paired t-tests (v1.5): they need a network and "
    "Praat, which are not in this program",
)


def rows(clips: Sequence[Clip], items: Sequence[Item]) -> list[Row]:
    """The rows of each subset, in the order of `clips`; the first of them tells how many could be measured."""
    table: list[Row] = []
    for subset in dict.fromkeys(clip.subset for clip in clips):
        of_subset = [item for item in items if item["subset"] == subset]
        n_clips = sum(clip.subset == subset for clip in clips)
        table.append(
            _about(subset, share("clips measured", [True] * len(of_subset) + [False] * (n_clips - len(of_subset))))
        )
        for task in dict.fromkeys(item["task"] for item in of_subset):
            made = _MAKERS.get(task, _overlap)([item for item in of_subset if item["task"] == task])
            table += [_about(subset, row) for row in made]
    return table


def _about(subset: str, row: Row) -> Row:
    return Row(f"{subset}: {row.what}", row.value, row.interval, row.n, row.goal, row.at_most, row.unit)


def _takeover(items: Sequence[Item], wanted: str) -> Row:
    return share(f"takeover rate ({wanted} is better)", [item["takeover"] for item in items])


def _latency(items: Sequence[Item]) -> list[Row]:
    known = [item["latency"] for item in items if item["latency"] is not None]
    early = share(
        "of the takeovers, begun before the user's end (the latency counts them as 0 s)", [s < 0 for s in known]
    )
    return [
        mean("latency of takeovers, s (lower is better)", [clamped(seconds) for seconds in known]),
        mean("the same without clamping, s", known),
        early,
    ]


def _pause(items: Sequence[Item]) -> list[Row]:
    return [_takeover(items, "lower")]


def _turn(items: Sequence[Item]) -> list[Row]:
    return [_takeover(items, "higher"), *_latency(items)]


def _interruption(items: Sequence[Item]) -> list[Row]:
    spoke = share("agent speaking when the interruption began", [item["spoke"] for item in items])
    talking = share(
        "agent still talking when the interruption ended (its latency says little)",
        [item["still_talking"] for item in items],
    )
    return [_takeover(items, "higher"), *_latency(items), spoke, talking]


def _backchannel(items: Sequence[Item]) -> list[Row]:
    return [
        _takeover(items, "lower"),
        mean("backchannels a second (higher is better)", [item["frequency"] for item in items]),
        mean("JSD of their times to people's (lower is better; 1 for none)", _numbers(items, "jsd")),
        share("clips with a backchannel", [bool(item["backchannels"]) for item in items]),
        mean("backchannels a second as the scripts of 2025 counted", [item["frequency_2025"] for item in items]),
    ]


def _overlap(items: Sequence[Item]) -> list[Row]:
    stops = [end - start for item in items for start, end in item["stops"]]
    answers = [end - start for item in items for start, end in item["answers"]]
    talking = [item for item in items if item["spoke"]]
    return [
        mean("stop latency, s: every time both spoke", stops),
        mean("response latency, s: from each user's end to the agent's next start", answers),
        share("agent speaking when the event began", [item["spoke"] for item in items]),
        share("of these, silent before the event's end", [item["silent_after"] is not None for item in talking]),
        mean("of these, seconds until silent", _numbers(talking, "silent_after")),
        share("agent began to speak after the event", [item["answered_after"] is not None for item in items]),
        mean("of these, seconds from the event's end", _numbers(items, "answered_after")),
        *(
            mean(f"words a minute {when}", _numbers([item["words_per_minute"] for item in items], key))
            for key, when in _WHEN.items()
        ),
    ]


_WHEN = {"before": "until the event's end", "after": "from then on", "clean": "in the same call without the event"}


def _numbers(items: Sequence[Item], key: str) -> list[float]:
    return [math.nan if item[key] is None else item[key] for item in items]


_MAKERS = {"pause": _pause, "turn": _turn, "interruption": _interruption, "backchannel": _backchannel}


def left_out(clips: Sequence[Clip], known: Collection[str] = ()) -> list[str]:
    """What the benchmark tells of these clips and the rows do not, each in a line.

    `known`: subsets of which people's backchannels are.
    """
    tasks = {clip.task for clip in clips}
    lines = [LEFT_OUT[0]] if "interruption" in tasks else []
    lines += LEFT_OUT[1:] if tasks & set(OVERLAPS) else []
    if any(clip.task == "backchannel" and clip.subset not in known for clip in clips):
        lines.append(
            "JSD (v1.0): it needs people's backchannels, the benchmark's icc_gt_distribution.json "
            "(v1_v1.5/evaluation of its repository); name it: --human"
        )
    return lines
