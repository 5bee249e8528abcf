"""What was counted of every clip -> rows of numbers, and in words what they leave out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from personaplex.evaluate.duplex.clips import OVERLAPS, Clip
from personaplex.evaluate.duplex.takeover import clamped
from personaplex.evaluate.row import Better, Row, pooled, share

Item = Mapping[str, Any]

LEFT_OUT = (
    "the relevance of an answer after an interruption, 0 to 5 (v1.0): a language model judges it",
    "what the agent did in an overlap: responded, resumed, was uncertain, or none of these (v1.5): a language model "
    "judges it",
    "UTMOSv2, pitch and loudness before and after an overlap, and their paired t-tests (v1.5): they need a network and "
    "Praat, which are not in this program",
)


class Column(NamedTuple):
    """A row of a task: `row` (a share or a mean) of what the clips add to it, each any number of values.

    Clips are independent of each other, the values of one are not.
    """

    what: str
    row: Callable[..., Row]
    of: Callable[[Item], Sequence[float]]
    better: Better | None = None


def rows(clips: Sequence[Clip], items: Sequence[Item]) -> list[Row]:
    """The rows of each subset, in the order of `clips`; the first of them tells how many could be measured."""
    table: list[Row] = []
    for subset in dict.fromkeys(clip.subset for clip in clips):
        n_clips, of_subset = sum(clip.subset == subset for clip in clips), _of(subset, items)
        n_lost = n_clips - len(of_subset)
        table.append(share(f"{subset}: clips measured", [True] * len(of_subset) + [False] * n_lost, better="higher"))
        for task in dict.fromkeys(item["task"] for item in of_subset):
            own = [item for item in of_subset if item["task"] == task]
            for column in _columns(task, own):
                table.append(
                    column.row(f"{subset}: {column.what}", [column.of(item) for item in own], better=column.better)
                )
    return table


def with_values(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Each item with what it adds to each row, for comparisons in pairs."""
    made = []
    for item in items:
        own = [other for other in _of(item["subset"], items) if other["task"] == item["task"]]
        added = {f"{item['subset']}: {column.what}": column.of(item) for column in _columns(item["task"], own)}
        made.append({**item, "values": {what: [float(v) for v in values] for what, values in added.items() if values}})
    return made


def _of(subset: str, items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item["subset"] == subset]


def _columns(task: str, items: Sequence[Item]) -> list[Column]:
    """The rows of a task's `items`."""
    columns = _COLUMNS.get(task, _OVERLAP)
    if task == "user interruption":  # in the other overlaps it is none of the agent's business to stop or to answer
        return [column._replace(better="lower") if column in _OF_TIMES else column for column in columns]
    if task == "interruption" and not any((item["latency"] or 0.0) < 0 for item in items):
        # Only words after its end are heard: that none of them came before it says nothing of the agent.
        return [column for column in columns if column not in _UNCLAMPED]
    return columns


def _share(what: str, groups: Sequence[Sequence[Any]], *, better: Better | None = None) -> Row:
    """No clip adds more than one outcome to a share."""
    return share(what, [outcome for group in groups for outcome in group], better=better)


def _if_known(key: str) -> Callable[[Item], list[float]]:
    return lambda item: [] if item[key] is None else [item[key]]


def _spans(key: str) -> Callable[[Item], list[float]]:
    return lambda item: [end - start for start, end in item[key]]


def _pace(when: str) -> Callable[[Item], list[float]]:
    return lambda item: [] if item["words_per_minute"][when] is None else [item["words_per_minute"][when]]


def _takeover(wanted: Better) -> Column:
    return Column(f"takeover rate ({wanted} is better)", _share, lambda item: [item["takeover"]], wanted)


_latency = _if_known("latency")
_CLAMPED = Column(
    "latency of takeovers, s (lower is better)",
    pooled,
    lambda item: [clamped(seconds) for seconds in _latency(item)],
    "lower",
)
_UNCLAMPED = [
    Column("the same without clamping, s", pooled, _latency),
    Column(
        "of the takeovers, begun before the user's end (the latency counts them as 0 s)", _share,
        lambda item: [seconds < 0 for seconds in _latency(item)], "lower",
    ),
]  # fmt: skip

_COLUMNS = {
    "pause": [_takeover("lower")],
    "turn": [_takeover("higher"), _CLAMPED, *_UNCLAMPED],
    "interruption": [
        _takeover("higher"),
        _CLAMPED,
        *_UNCLAMPED,
        Column("agent speaking when the interruption began", _share, lambda item: [item["spoke"]]),
        Column(
            "agent still talking when the interruption ended (its latency says little)",
            _share,
            lambda item: [item["still_talking"]],
            "lower",
        ),
    ],
    "backchannel": [
        _takeover("lower"),
        Column("backchannels a second (higher is better)", pooled, _if_known("frequency"), "higher"),
        Column("JSD of their times to people's (lower is better; 1 for none)", pooled, _if_known("jsd"), "lower"),
        Column("clips with a backchannel", _share, lambda item: [bool(item["backchannels"])], "higher"),
        Column("backchannels a second as the scripts of 2025 counted", pooled, _if_known("frequency_2025"), "higher"),
    ],
}

_OF_TIMES = [
    Column("stop latency, s: every time both spoke", pooled, _spans("stops")),
    Column("response latency, s: from each user's end to the agent's next start", pooled, _spans("answers")),
]
_OVERLAP = [
    *_OF_TIMES,
    Column("agent speaking when the event began", _share, lambda item: [item["spoke"]]),
    Column(
        "of these, silent before the event's end",
        _share,
        lambda item: [item["silent_after"] is not None] if item["spoke"] else [],
    ),
    Column("of these, seconds until silent", pooled, _if_known("silent_after")),
    Column("agent began to speak after the event", _share, lambda item: [item["answered_after"] is not None]),
    Column("of these, seconds from the event's end", pooled, _if_known("answered_after")),
    Column("words a minute until the event's end", pooled, _pace("before")),
    Column("words a minute from then on", pooled, _pace("after")),
    Column("words a minute in the same call without the event", pooled, _pace("clean")),
]


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
