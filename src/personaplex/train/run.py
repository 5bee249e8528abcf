"""The folder of a training run: what was asked for, where it stands, and how it went.

config.json                   the configuration; a run is resumed with exactly this one
step-00012000.safetensors     everything the step needs, the last two of them
log.jsonl                     one line per report
loss.svg                      the same as pictures
"""

from __future__ import annotations

import json
import math
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from personaplex.checkpoint.tensors import TensorFile
from personaplex.errors import CheckpointError, OutputError, TrainingError
from personaplex.files import whole_file

T = TypeVar("T")

KEPT = 2
"""Checkpoints that stay: the last, and the one before in case the last cannot be read."""

Say = Callable[[str], object]
"""Takes one line for the person who waits."""


def silent(line: str) -> None:
    """Say nothing."""


class Run:
    """A run in `folder`, which is created. `say` is given the console lines.

    Raises TrainingError when the folder holds a run with another configuration.
    """

    writes = True

    def __init__(self, folder: Path, config: dict[str, Any], say: Say = silent) -> None:
        self.folder, self.say = folder, say
        self.config: dict[str, Any] = json.loads(json.dumps(config))  # tuples become lists, as in the file
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"the folder {folder} of the run cannot be made: {error.strerror}") from error
        path = folder / "config.json"
        if path.exists():
            self._check_same(path)
        else:
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        self._began = time.monotonic() - self._seconds_logged()

    def _check_same(self, path: Path) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} cannot be read ({error}); use another folder for this run") from error
        for field, there, here in _differences(stored, self.config):
            raise TrainingError(
                f"{self.folder} holds a run whose {field} is {json.dumps(there)}, now it is {json.dumps(here)}; "
                "resume it with its own configuration, or use another folder"
            )

    @property
    def seconds(self) -> float:
        """Time spent on this run so far, earlier sessions included (as far as they logged)."""
        return time.monotonic() - self._began

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, arrays: dict[str, mx.array], **numbers: float) -> Path:
        """Write everything that step `step` (the steps done so far) leaves behind, and forget all but the last two.

        Raises TrainingError when it cannot be written; the checkpoint before is untouched then.
        """
        mx.eval(list(arrays.values()))
        path = self.folder / f"step-{step:08d}.safetensors"
        about = {"step": str(step), "crc32": str(_checksum(arrays)), "numbers": json.dumps(numbers)}
        try:
            with whole_file(path) as temporary:
                mx.save_safetensors(str(temporary), arrays, about)
                TensorFile(temporary)  # a writer that stops early does not always say so
        except (OutputError, CheckpointError) as error:
            n_bytes, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(self.folder).free
            why = f"the disk is full ({n_bytes >> 20} MiB needed, {free >> 20} free)" if free < n_bytes else str(error)
            last = self.checkpoints()[-1:]
            intact = f"{last[0].name} is intact: make room and resume" if last else "there is no earlier one"
            raise TrainingError(f"the checkpoint of step {step} could not be written: {why}; {intact}") from error
        for old in self.checkpoints()[:-KEPT]:
            old.unlink()
        return path

    def restore(self) -> tuple[int, dict[str, mx.array]] | None:
        """The last step saved and its arrays, or None in a new run; log lines after that step are cut off.

        A damaged checkpoint is said and passed over. Raises TrainingError when there are some and none can be read.
        """
        found = self.checkpoints()
        damaged: list[tuple[Path, CheckpointError]] = []
        for path in reversed(found):
            try:
                step, arrays = _read(path)
            except CheckpointError as error:
                damaged.append((path, error))
                continue
            for bad, why in damaged:
                self.say(f"warning: {why}; going on from {path.name}")
                self._set_aside(bad)
            self._cut_log(step)
            return step, arrays
        if damaged:
            raise TrainingError(f"no checkpoint in {self.folder} can be read ({damaged[0][1]}); use another folder")
        self._cut_log(-1)
        return None

    def log(self, step: int, **numbers: float) -> None:
        """Append a line to log.jsonl, and say it. Numbers that are not finite are written as null."""
        values = {name: _plain(value) for name, value in numbers.items()}
        line = {"step": step, "seconds": round(self.seconds, 2)} | values
        try:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise TrainingError(f"{self._log} cannot be written: {error.strerror}; make room and resume") from error
        words = [f"{name} {'nan' if value is None else f'{value:.4g}'}" for name, value in values.items()]
        self.say("  ".join([f"step {step:>6}", f"{self.seconds:>6.0f} s", *words]))

    def lines(self) -> list[dict[str, Any]]:
        """Every line of the log; one that an interruption cut short is left out."""
        if not self._log.exists():
            return []
        return list(_json_lines(self._log.read_text(encoding="utf-8")))

    def plot(self) -> Path:
        """Draw every logged number over the steps into loss.svg."""
        path = self.folder / "loss.svg"
        with whole_file(path) as temporary:
            temporary.write_text(_svg(self.lines()), encoding="utf-8")
        return path

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    def _set_aside(self, damaged: Path) -> None:
        damaged.rename(damaged.with_suffix(".damaged"))

    def _seconds_logged(self) -> float:
        return max((line["seconds"] for line in self.lines()), default=0.0)

    def _cut_log(self, step: int) -> None:
        kept = [line for line in self.lines() if line["step"] <= step]
        if self._log.exists():
            with whole_file(self._log) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._began = time.monotonic() - self._seconds_logged()


class Follower(Run):
    """A run as seen by a process that trains beside the one that keeps it: restored like it, nothing written."""

    writes = False

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.say, self.config = folder, silent, config
        self._began = time.monotonic()

    def save(self, step: int, arrays: dict[str, mx.array], **numbers: float) -> Path:  # noqa: ARG002
        """Where the keeper writes it. Evaluates the arrays as it does: each needs the others' part in them."""
        mx.eval(list(arrays.values()))
        return self.folder / f"step-{step:08d}.safetensors"

    def log(self, step: int, **numbers: float) -> None:
        """Nothing."""

    def plot(self) -> Path:
        """Where the keeper draws it."""
        return self.folder / "loss.svg"

    def _set_aside(self, damaged: Path) -> None:
        """The keeper does."""

    def _cut_log(self, step: int) -> None:
        """The keeper does."""


def pack(state: Any) -> dict[str, mx.array]:
    """A training's state, a tree of arrays, by name: for a checkpoint."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(state)))


def unpack(like: T, arrays: dict[str, mx.array]) -> T:
    """The state that `pack` made arrays of; raises TrainingError when they are another model's."""
    leaves = pack(like)
    if {n: a.shape for n, a in leaves.items()} != {n: a.shape for n, a in arrays.items()}:
        raise TrainingError("the checkpoint holds another network than the configuration describes")
    names = iter(leaves)  # both walks go the same way
    return cast(T, tree_map(lambda _: arrays[next(names)], like))


def _differences(there: Any, here: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of what differs, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(name), here.get(name), f"{field}.{name}" if field else name)
    elif there != here:
        yield field or "config", there, here


def _checksum(arrays: dict[str, mx.array]) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(name.encode(), crc)
        if arrays[name].size:
            crc = zlib.crc32(np.array(arrays[name].reshape(-1).view(mx.uint8)).tobytes(), crc)
    return crc


def _read(path: Path) -> tuple[int, dict[str, mx.array]]:
    """Raises CheckpointError when the file is cut short, damaged or no checkpoint of ours."""
    TensorFile(path)
    try:
        arrays, about = cast("tuple[dict[str, mx.array], dict[str, str]]", mx.load(str(path), return_metadata=True))
        mx.eval(list(arrays.values()))
        step, crc = int(about["step"]), int(about["crc32"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if _checksum(arrays) != crc:
        raise CheckpointError(f"{path} is damaged: its checksum is wrong")
    return step, arrays


def _plain(value: float) -> float | None:
    number = float(value)
    return None if not math.isfinite(number) else int(number) if number.is_integer() else float(f"{number:.6g}")


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


_WIDTH, _HEIGHT, _MARGIN, _COLUMNS = 320, 180, 40, 3


def _svg(lines: list[dict[str, Any]]) -> str:
    """A grid of small charts, one per number, in order of first appearance."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("step", "seconds")))
    width = _COLUMNS * _WIDTH
    height = max(1, -(-len(names) // _COLUMNS)) * _HEIGHT
    charts = []
    for i, name in enumerate(names):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            left, top = i % _COLUMNS * _WIDTH, i // _COLUMNS * _HEIGHT
            charts.append(f'<g transform="translate({left} {top})">{_chart(name, points)}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(charts)
        + "\n</svg>\n"
    )


def _chart(name: str, points: list[tuple[int, float]]) -> str:
    """One curve with its name, its extremes, its last value and the steps it spans."""
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    across, up = _WIDTH - 1.5 * _MARGIN, _HEIGHT - 1.5 * _MARGIN
    bottom = _HEIGHT - _MARGIN / 2

    def place(x: float, y: float) -> str:
        right = (x - xs[0]) / max(1, xs[-1] - xs[0])
        above = (y - low) / (high - low) if high > low else 0.5
        return f"{_MARGIN + across * right:.1f},{bottom - up * above:.1f}"

    curve = " ".join(place(x, y) for x, y in points)
    end = _MARGIN + across
    return (
        f'<text x="{_MARGIN}" y="18" font-weight="bold">{name} = {ys[-1]:.4g}</text>'
        f'<path d="M{_MARGIN} {bottom - up:.1f}V{bottom:.1f}H{end:.1f}" fill="none" stroke="#999"/>'
        f'<polyline points="{curve}" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>'
        f'<text x="2" y="{bottom - up + 10:.1f}">{high:.3g}</text><text x="2" y="{bottom:.1f}">{low:.3g}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 6}">{xs[0]}</text>'
        f'<text x="{end:.1f}" y="{_HEIGHT - 6}" text-anchor="end">{xs[-1]}</text>'
    )
