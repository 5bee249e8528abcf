"""What a report is made from: files, told apart by what is in them. One that is broken does not stop the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from personaplex.audio import LONGEST_SECONDS, read_audio, read_channels
from personaplex.errors import AudioError, PersonaPlexError, UsageError
from personaplex.evaluate.recordings import SUFFIXES
from personaplex.evaluate.result import Failure, Result
from personaplex.report.quantised import Quantised
from personaplex.report.recorded import Mark, Recorded, Said, first_sound, looks_swapped, of_one_length
from personaplex.steps import StepRecord
from personaplex.units import FRAME_SECONDS, SAMPLE_RATE

KNOWN = (
    "the result of an evaluation, a recording of `talk` or `respond`, what `respond --json` printed, the export of a "
    "server's session, or a quantisation report"
)

NOT_TRANSCRIBED = "what the user said: nothing of it was transcribed"
ENDED_AFTER = 1.2
"""Seconds of quiet after which the server writes a turn of the agent's down."""
CHARACTERS_A_SECOND = 15.0
"""Of speech, roughly: enough to place a text whose end alone is known."""

Channel: TypeAlias = Literal["left", "right"]
Entry: TypeAlias = "dict[str, Any]"
T = TypeVar("T")


@dataclass
class Sources:
    """Everything that could be read, and what could not."""

    results: list[tuple[str, Result]] = field(default_factory=list)
    quantised: list[Quantised] = field(default_factory=list)
    conversations: list[Recorded] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.results) + len(self.quantised) + len(self.conversations)

    def read(
        self,
        paths: Iterable[Path],
        agent: Channel | None,
        longest_seconds: float = LONGEST_SECONDS,
        *,
        needed: bool = True,
    ) -> None:
        """Read files, and folders of them (not the folders in those).

        `agent` is the agent's channel whatever a recording says. If they are `needed`, because nothing else is
        reported on, raises UsageError for a folder with nothing to read, and the first file's error when not one of
        them could be read.
        """
        first: PersonaPlexError | None = None
        files: dict[Path, None] = {}
        for path in paths:
            try:
                files |= dict.fromkeys(_files([path]))
            except UsageError as error:
                if needed:
                    raise
                self.failures.append(Failure(printable(str(path)), printable(str(error))))
        for path in _each_once(files):
            try:
                self._take(path, agent, longest_seconds)
            except PersonaPlexError as error:
                first = first or error
                self.failures.append(Failure(printable(str(path)), printable(str(error))))
        if needed and first is not None and not len(self):
            n = len(self.failures)
            raise first if n == 1 else type(first)(f"none of {n} files can be read; the first: {first}")

    def add(self, recorded: Recorded) -> None:
        """Take a conversation up, under a name of its own: a comparison finds items by their names."""
        own, n = printable(recorded.name), 1
        taken, name = {one.name for one in self.conversations}, own
        while name in taken:
            n += 1
            name = f"{own} ({n})"
        self.conversations.append(replace(recorded, name=name))

    def _take(self, path: Path, agent: Channel | None, longest_seconds: float) -> None:
        if path.suffix.lower() == ".json":
            entry = read_json(path)
            if entry.get("kind") == "comparison":
                raise UsageError(f"{path} is a comparison, which has its own page; name the results that it compares")
            if entry.get("kind") is not None and "rows" in entry:
                self.results.append((printable(path.name), load_result(path)))
                return
            if "candidates" in entry and "reference" in entry:
                self.quantised.append(_whole(path, lambda: Quantised.from_json(printable(path.name), entry)))
                return
            self.add(_checked(described(path, entry, agent, longest_seconds)))
            return
        beside = path.with_suffix(".json")
        entry = read_json(beside) if beside.is_file() else {}
        if _reader(entry) is not None:
            self.add(_checked(described(beside, entry, agent, longest_seconds)))
        else:
            self.add(_bare(path, agent, longest_seconds))


def _files(paths: Iterable[Path]) -> list[Path]:
    """The files to read: in a folder, sounds that no description beside them speaks of, and every JSON file."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
        except OSError as error:
            raise UsageError(f"the folder {path} cannot be read: {error.strerror}") from error
        described = [one for one in inside if one.suffix.lower() == ".json" and not is_written_here(one)]
        spoken_of = {name for one in described for name in _sounds_of(one)}
        sounds = [one for one in inside if one.suffix.lower() in SUFFIXES and one.name not in spoken_of]
        if not described and not sounds:
            raise UsageError(f"the folder {path} holds nothing to report on: no recording, and no JSON file")
        found += [*described, *sounds]
    return list(dict.fromkeys(found))


def _each_once(files: Iterable[Path]) -> list[Path]:
    """Without a sound whose description is among them, or named under another path: that is one conversation."""
    found = {path.resolve(): path for path in reversed(list(files))}
    described = [path for path in found.values() if path.suffix.lower() == ".json"]
    spoken_of = {(path.parent / name).resolve() for path in described for name in _sounds_of(path)}
    return [path for whole, path in reversed(found.items()) if whole not in spoken_of]


def read_json(path: Path) -> Entry:
    """A JSON object. Raises UsageError."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_storable)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON that can be read ({error}); expected {KNOWN}") from error
    if not isinstance(entry, dict):
        raise UsageError(f"{path} holds no JSON object; expected {KNOWN}")
    return entry


def load_result(path: Path) -> Result:
    """The result of an evaluation, every number of it a number. Raises UsageError."""
    result = Result.load(path)
    numbers = [(r.value, *r.interval, r.n, 0.0 if r.goal is None else r.goal) for r in result.rows]
    texts = [(r.what, r.unit) for r in result.rows] + [(f.item, f.reason) for f in result.failures]
    sound = all(isinstance(one, int | float) for row in numbers for one in row)
    sound = sound and all(isinstance(one, str) for pair in texts for one in pair)
    sound = sound and all(row.better in ("higher", "lower", None) for row in result.rows)
    sound = sound and all(isinstance(one, Mapping) for one in (result.about, *result.items))
    if not sound or not isinstance(result.kind, str):
        raise UsageError(f"{path} is damaged: a number, or a text, of its rows, items or failures is none")
    return result


def _storable(pairs: list[tuple[str, Any]]) -> Entry:
    """A JSON object without halves of characters, which no file can hold again."""
    return {printable(name): printable(value) if isinstance(value, str) else value for name, value in pairs}


def printable(text: str) -> str:
    """A text, or a file's name, as UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode()


def described(path: Path, entry: Entry, agent: Channel | None, longest_seconds: float) -> Recorded:
    """The conversation that a JSON file speaks of. Raises UsageError for another one, AudioError for its sound."""
    reader = _reader(entry)
    if reader is None:
        raise UsageError(f"{path} is none of what a report is made from: {KNOWN}")
    return _whole(path, lambda: reader(path, entry, agent, longest_seconds))


def _reader(entry: Entry) -> Callable[[Path, Entry, Channel | None, float], Recorded] | None:
    if "events" in entry and "left" in entry:
        return _talk
    if "tokens" in entry and "input" in entry and "output" in entry:
        return _respond
    if "session" in entry and "messages" in entry:
        return _session
    return None


def _sounds_of(path: Path) -> set[str]:
    """Names of sounds that a JSON file speaks of, as far as it can be read."""
    beside = {path.with_suffix(suffix).name for suffix in SUFFIXES}
    try:
        entry = read_json(path)
    except UsageError:
        return beside  # they are one broken conversation, not two
    if _reader(entry) is _respond:
        return {Path(str(entry[which])).name for which in ("input", "output")}
    return beside if _reader(entry) else set()


def is_written_here(path: Path) -> bool:
    """Whether a JSON file is what `report` itself wrote: in a folder that is not a source, and it may be replaced."""
    try:
        return read_json(path).get("kind") in ("report", "comparison")
    except UsageError:
        return False


def _whole(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__} {error} while it was read") from error


# Recordings.


def _talk(path: Path, entry: Entry, agent: Channel | None, longest_seconds: float) -> Recorded:
    """What `talk --record`, `respond --record` and `verify --keep` write."""
    left, right = _two_channels(_beside(path), longest_seconds)
    channel = agent or ("left" if entry["left"] == "agent" else "right")
    events = [(_second(event["at"]), str(event["event"]), event) for event in entry["events"]]
    said = [Said(at, str(event["text"])) for at, what, event in events if what == "agent text"]
    heard = [Said(at, str(event["text"])) for at, what, event in events if what == "user text"]
    marks = [Mark(at, what, _more(event)) for at, what, event in events if not what.endswith(" text")]
    steps = StepRecord.from_json(entry["steps"]) if "steps" in entry else None
    lacks = [] if said else ["what the agent said: no text was recorded"]
    lacks += [] if heard else [NOT_TRANSCRIBED]
    if steps is None:
        by_cascade = entry.get("model") == "cascade"
        why = "a cascade has no such steps" if by_cascade else "it was recorded by an earlier version"
        why = "`verify` does not keep them" if entry.get("mode") == "verify" else why
        known = [f"{name} {entry[name]}" for name in ("step_ms_p50", "step_ms_p99") if not by_cascade and name in entry]
        lacks.append(
            f"step times frame by frame and token entropy: {why}" + (f" ({', '.join(known)})" if known else "")
        )
    about = {name: value for name, value in entry.items() if name not in ("left", "right", "events", "steps")}
    source = {"respond": "respond --record", "verify": "verify --keep"}.get(str(entry.get("mode")), "talk --record")
    pcm = (left, right) if channel == "left" else (right, left)
    return Recorded(path.stem, source, *pcm, said, heard, marks, steps, None, about, lacks)


def _respond(path: Path, entry: Entry, agent: Channel | None, longest_seconds: float) -> Recorded:  # noqa: ARG001
    """What `respond --json` printed, with the two recordings that it names."""
    output = _find(path, str(entry["output"]))
    if output is None:
        raise AudioError(f"{path} speaks of {entry['output']}, which is neither there nor beside it")
    answer, lacks = read_audio(output, longest_seconds), []
    source = _find(path, str(entry["input"]))
    if source is None:
        lacks.append(f"the user's side: the recording {entry['input']} is neither there nor beside the JSON file")
    lacks.append(NOT_TRANSCRIBED)
    user = np.zeros(0, np.float32) if source is None else read_audio(source, longest_seconds)[: len(answer)]
    said = [Said(int(at) * FRAME_SECONDS, str(text)) for at, text in entry.get("texts", [])]
    if "texts" not in entry and entry["text"]:
        said = [Said(0.0, str(entry["text"]))]
        lacks.append("when each word was said: it was printed by an earlier version")
    steps = StepRecord.from_json(entry["steps"]) if "steps" in entry else None
    if steps is None:
        lacks.append("step times frame by frame and token entropy: it was printed by an earlier version")
    names = ("model", "persona", "voice", "seed", "stopped", "rtf", "load_ms", "prefill_ms", "first_chunk_ms")
    about = {name: entry[name] for name in names if name in entry}
    pcm = of_one_length(answer, user)
    return Recorded(path.stem, "respond --json", *pcm, said, (), (), steps, None, about, lacks)


def _session(path: Path, entry: Entry, agent: Channel | None, longest_seconds: float) -> Recorded:
    """What a server exports of a session: its transcript as JSON, and its sound as WAV beside it."""
    sound = _beside(path, "the transcript of a server's session; export its sound too (format=wav, `record` asked for)")
    left, right = _two_channels(sound, longest_seconds)
    pcm = (right, left) if agent == "right" else (left, right)
    created, seconds = _second(entry["session"]["created"]), len(left) / SAMPLE_RATE
    # An answer to a recording is made faster, or slower, than it is heard: its clock says nothing of the sound.
    first = first_sound(pcm[0]) if entry["session"].get("kind") == "respond" else None
    sides: dict[str, list[Said]] = {"assistant": [], "user": []}
    for message in entry["messages"]:
        text, own = str(message["content"]), sides[message["role"]]
        end = min(_second(message["at"]) - created - ENDED_AFTER, seconds)
        begin = end - len(text) / CHARACTERS_A_SECOND if first is None else first
        own.append(Said(max(own[-1].at if own else 0.0, begin), f"{text} "))
    lacks = [
        "when each word was said: the history keeps when a turn was written down, after its end",
        "step times and token entropy: the server's history does not keep them",
    ]
    lacks += [] if sides["user"] else [NOT_TRANSCRIBED]
    about = {name: entry["session"].get(name) for name in ("id", "kind", "persona", "title", "created")}
    return Recorded(path.stem, "serve", *pcm, sides["assistant"], sides["user"], (), None, None, about, lacks)


def _bare(path: Path, agent: Channel | None, longest_seconds: float) -> Recorded:
    """A stereo recording that nothing speaks of."""
    left, right = _two_channels(path, longest_seconds)
    pcm = (right, left) if agent == "right" else (left, right)
    lacks = ["what was said", "step times and token entropy"]
    doubts = () if agent else ("nothing says which side is which: the agent is taken to be left (--agent says)",)
    return Recorded(path.stem, "a recording", *pcm, lacks=lacks, doubts=doubts)


def _two_channels(path: Path, longest_seconds: float) -> tuple[np.ndarray, np.ndarray]:
    pcm = read_channels(path, longest_seconds)
    if pcm.shape[1] != 2:
        raise AudioError(
            f"{path} has {pcm.shape[1]} channel{'s' if pcm.shape[1] > 1 else ''}; a conversation has two, the agent "
            "and the user side by side"
        )
    return np.ascontiguousarray(pcm[:, 0]), np.ascontiguousarray(pcm[:, 1])


def _beside(path: Path, what: str = "the description of a recording") -> Path:
    for suffix in (".wav", ".flac", *sorted(SUFFIXES)):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise AudioError(f"{path} is {what}; no sound of that name lies beside it")


def _find(path: Path, name: str) -> Path | None:
    """A file that a JSON file names: from here, or beside it."""
    return next((one for one in (Path(name), path.parent / Path(name).name) if one.is_file()), None)


def _second(value: Any) -> float:
    second = float(value)
    if not 0 <= second < math.inf:
        raise ValueError(f"{value} is no time in seconds")
    return second


def _more(event: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in event.items() if name not in ("at", "event"))


def _checked(recorded: Recorded) -> Recorded:
    """With a word on channels that look like the wrong way round."""
    if not looks_swapped(recorded):
        return recorded
    doubt = "the channels look swapped: the agent's words were noted while the user's side sounds (--agent left|right)"
    return replace(recorded, doubts=[*recorded.doubts, doubt])
