"""The benchmarks of speed, on the smallest random models: what they count, and that every number has its meaning."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mlx.core as mx
import pytest

from personaplex import __version__
from personaplex.bench import demand, machine
from personaplex.bench.compare import comparison, read_report
from personaplex.bench.graph import n_kernels, operations
from personaplex.bench.report import Row, as_report, kept
from personaplex.bench.roof import Roof
from personaplex.bench.wanted import Wanted
from personaplex.bench.weights import open_model, random_model
from personaplex.checkpoint.store import write_config
from personaplex.cli.main import main
from personaplex.config import LMConfig, MimiConfig
from personaplex.errors import BackendError, UsageError
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.nn.state import parameters
from personaplex.runtime.device import Device
from tests.conftest import PARITY, WINDOW
from tests.wide import WIDE, write_wide

TINY = f"random:{PARITY}"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two layers, wide enough to be packed, that remember 20 frames."""
    folder = tmp_path_factory.mktemp("narrow")
    write_config(folder / "config.json", replace(WIDE, lm=replace(WIDE.lm, num_layers=2, context=20)))
    return f"random:{folder}"


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["bench", *arguments]) == 0
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_step_has_a_row_for_each_precision_and_context(
    narrow: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--bits", "16,8", "--kv-bits", "16,8", "--context", "0,9999", "--plot", str(tmp_path / "a.svg")]
    done = report(capsys, "step", "--model", narrow, "--frames", "2", *flags)
    assert done["possible"]["copy_gb_per_s"] > 0 < done["possible"]["matmul_tflop_per_s"]
    rows = [row for row in done["rows"] if row["name"] == "LM step"]
    assert [(row["weights"], row["kv_bits"], row["context"]) for row in rows] == [
        (weights, kv, context) for weights in ("float32", 8) for kv in (16, 8) for context in (0, 20)
    ], "a window holds no more than it has rows"
    assert all(row["achieved"] == pytest.approx(row["floor_ms"] / row["p50_ms"], rel=0.5) for row in rows)
    by = {(row["weights"], row["kv_bits"], row["context"]): row for row in rows}
    assert by["float32", 16, 20]["read_mb"] > by["float32", 16, 0]["read_mb"] > by[8, 16, 0]["read_mb"]
    assert by["float32", 8, 20]["read_mb"] < by["float32", 16, 20]["read_mb"]
    frame = next(row for row in done["rows"] if row["name"] == "whole frame")
    assert frame["kernels"] > by["float32", 16, 20]["kernels"] > 50
    drawn = ElementTree.parse(tmp_path / "a.svg").getroot()
    curves = [node for node in drawn if node.tag.endswith("polyline")]
    colours = next(node.text or "" for node in drawn if node.tag.endswith("style"))
    assert len(curves) == 4 and all(f".{node.attrib['class'].split()[1]} " in colours for node in curves)


def test_sessions_step_together_and_what_does_not_fit_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned, rows, of = [], [], []

    def free() -> int:
        return 32 * 2**20

    monkeypatch.setattr("personaplex.bench.sessions.available_bytes", free)
    flags = ["--sessions", "1,3,500", "--plot", str(tmp_path / "a.svg")]
    for row in report(capsys, "sessions", "--model", TINY, "--frames", "2", *flags)["rows"]:
        planned.append(row["planned_gib"])
        assert ("p99_ms" in row) == (row["sessions"] != 500) == ("skipped" not in row)
        rows.append((row["sessions"], "shared" in row))
        of.append(row.get("prompts_mb", 0))
    assert rows == [(1, False), (3, False), (500, False), (3, True)]
    assert planned[0] <= planned[1] < planned[2] and planned[3] <= planned[1]
    # Three callers of the persona that the first one has alone.
    assert 0 < of[0] < of[1] and of[3] == pytest.approx(of[0], abs=0.002)
    assert ElementTree.parse(tmp_path / "a.svg").getroot() is not None


def test_prefill_is_slower_than_memory(capsys: pytest.CaptureFixture[str]) -> None:
    done = report(capsys, "prefill", "--model", f"random:{PARITY}", "--frames", "2", "--sessions", "2")
    rows = {row["name"]: row for row in done["rows"]}
    assert list(rows) == ["longest piece", "prefill", "cold", "from memory", "from disk"]
    assert rows.pop("longest piece")["columns"] == 200, "as much as its window holds"
    assert all(row["columns"] == 90 and row["slots"] == 2 for row in rows.values())
    assert rows["cold"]["read_mb"] == pytest.approx(
        rows["prefill"]["read_mb"] + rows["from memory"]["read_mb"], abs=0.2
    )


def test_a_codec_of_several_callers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = report(capsys, "codec", "--model", TINY, "--frames", "2", "--sessions", "1,2")["rows"]
    trips = [row for row in rows if row["name"] == "round trip"]
    assert [row["slots"] for row in trips] == [1, 2] and trips[1]["gflop"] >= trips[0]["gflop"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step", "--bits", "5"], "--bits is '5'; expected some of 16,8,4"),
        (["step", "--kv-bits", "4"], "--kv-bits"),
        (["step", "--sessions", "4"], "--sessions is for"),
        (["sessions", "--sessions", "0"], "--sessions is '0'; expected numbers from 1"),
        (["load", "--bits", "8", "--model", "x"], "--bits is for"),
        (["codec", "--compile"], "--compile is for"),
        (["step", "--model", "random:9b"], "expected 7b, small"),
        (["step", "--model", f"random:{WINDOW}", "--bits", "8"], "leave it at 16 bits"),
        (["step", "--compare", "/nowhere"], "/nowhere cannot be read"),
        (["step", "--model", TINY, "--compare", __file__], "holds no report"),
        (["step", "--llm", "x"], "--llm is for `bench cascade`"),
    ],
)
def test_what_cannot_be(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_report_against_an_earlier_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = as_report("step", [Row("a", [10.0], {"bits": 8, "kernels": 9}), Row("gone", [1.0])])
    now = as_report("step", [Row("a", [5.0], {"bits": 8, "kernels": 4}), Row("a", [5.0], {"bits": 4}), Row("b", [])])
    lines = comparison(now, before)
    assert "  a, bits 8: p50 5.0 / 10.0 = 0.50, p99 5.0 / 10.0 = 0.50" in lines
    assert "  a, bits 4: not measured then" in lines and "  gone: not measured now" in lines
    assert not any("b:" in line for line in lines), "what was skipped is compared with nothing"
    assert lines[-1] == "the same machine"
    kept = tmp_path / "kept.json"
    kept.write_text("a table\n" + json.dumps(before | {"machine": {"cpu": "abacus"}}))
    assert "another machine: cpu abacus then and" in comparison(now, read_report(kept))[-1]
    kept.write_text(json.dumps(before))
    done = main(["bench", "codec", "--model", TINY, "--frames", "1", "--compare", str(kept), "--json"])
    out, err = capsys.readouterr()
    assert done == 0 and len(out.splitlines()) == 1 and "gone: not measured now" in err


def test_the_floor_is_what_takes_longer() -> None:
    machine = Roof(bytes_per_second=1e9, operations_per_second=1e10)
    assert machine.floor_ms(demand.Demand(2e6, 1e6)) == pytest.approx(2.0)
    assert machine.floor_ms(demand.Demand(1e6, 5e7)) == pytest.approx(5.0)


def test_the_7b_needs_what_was_reckoned_by_hand() -> None:
    lm = LanguageModel(LMConfig(), 8)  # never evaluated
    lm.set_dtype(mx.bfloat16)
    temporal = 32 * (4 * 4096**2 + 3 * 4096 * 11264 + 2 * 4096)
    depformer = 8 * (4096 * 1024 + 6 * (4 * 1024**2 + 3 * 1024 * 2816) + 1024 * 2048) + 6 * 2 * 1024
    weights = temporal + depformer + 4096 + 4096 * 32000
    empty, full = demand.of_step(lm, [0]), demand.of_step(lm, [3000])
    assert empty.n_bytes == 2 * weights and 13.4e9 < empty.n_bytes < 15e9
    assert full.n_bytes - empty.n_bytes == 3000 * 32 * 2 * 4096 * 2
    assert demand.of_step(lm, [3000] * 64).n_bytes == empty.n_bytes + 64 * (full.n_bytes - empty.n_bytes)
    assert empty.n_operations == pytest.approx(2 * weights, rel=1e-3)
    assert demand.of_prompt(lm, 90).n_operations == pytest.approx(90 * 2 * temporal, rel=0.01)
    packed = demand.of_step(lm, [3000], 8).n_bytes - empty.n_bytes
    assert packed == 3000 * 32 * 2 * (4096 + 32 * 4)


def test_mimi_needs_what_its_papers_say() -> None:
    config = MimiConfig()
    mimi = Mimi(config)
    for found, macs, megabytes in (
        (demand.of_encoder(mimi, config), 217e6, 173),
        (demand.of_decoder(mimi, config), 216e6, 161),
    ):
        assert found.n_operations / 2 == pytest.approx(macs, rel=0.1)
        assert found.n_bytes / 1e6 == pytest.approx(megabytes, rel=0.1)


def test_random_weights_are_of_one_size_however_they_are_stored() -> None:
    plain = random_model(WIDE, 16, compiled=False)
    assert plain.config.quantization is None
    for bits in (8, 4):
        packed = random_model(WIDE, bits, compiled=False).lm
        layer = packed.temporal.layers[0].attention.in_proj
        assert layer.bits == bits
        values = mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, bits)
        spread = mx.std(plain.lm.temporal.layers[0].attention.in_proj.weight)
        assert mx.abs(mx.std(values) - spread) < 0.1 * spread
        assert mx.abs(mx.mean(values)) < 0.1 * spread
    assert plain.list_voices() == [] and plain.folder.fingerprint == "random weights"


def test_a_random_model_that_does_not_fit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personaplex.bench.weights.available_bytes", lambda: 12 * 2**30)
    before = mx.get_active_memory()
    with pytest.raises(BackendError, match="1 slot needs"):
        open_model("random:7b", 16)
    assert mx.get_active_memory() - before < 2**20


def test_a_model_on_disk_is_taken_as_it_is_or_packed(tmp_path: Path) -> None:
    folder = str(write_wide(tmp_path))
    assert open_model(folder).config.quantization is None
    packed = open_model(folder, 8).lm
    assert any(array.dtype == mx.uint32 for array in parameters(packed).values())
    with pytest.raises(UsageError, match="random model 'x'"):
        open_model("random:x")


def test_kernels_are_counted_and_views_are_not() -> None:
    x = mx.ones((4, 4))
    mx.eval(x)
    assert n_kernels(x) == 0
    y = (x @ x).T.reshape(2, 8)[:, :3]
    assert n_kernels(y) == 1 and operations(y)["Transpose"] == 1
    assert n_kernels(y, y + y) == 2
    fused = mx.compile(lambda a: mx.tanh(a + a) * a)
    assert n_kernels(fused(x)) == 1 < n_kernels(mx.tanh(x + x) * x) == 3


def test_starting_is_timed_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    rows = report(capsys, "startup", "--model", TINY)["rows"]
    stages = ["import", "load", "prompt", "first frame", "second frame", "total"]
    assert [(row["name"], row["kernel_cache"]) for row in rows] == [
        (stage, cache) for cache in ("empty", "filled") for stage in stages
    ]
    of = {row["name"]: row["p50_ms"] for row in rows[:6]}
    assert of["total"] == pytest.approx(sum(of[stage] for stage in stages[:4]), abs=0.01)
    assert all(row["made"] for row in rows)
    assert main(["bench", "startup", "--model", "random:9b"]) == 2
    assert "'9b'" in capsys.readouterr().err


def test_all_of_them_and_what_cannot_be_measured_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def starts(_: Wanted) -> list[Row]:
        raise BackendError("no process could be started")

    monkeypatch.setattr("personaplex.bench.startup.run", starts)
    monkeypatch.setattr("personaplex.bench.report.root", lambda: tmp_path)
    done = report(capsys, "all", "--model", TINY, "--frames", "1", "--sessions", "1,2", "--save")
    assert {row["bench"] for row in done["rows"]} == {"step", "codec", "prefill", "sessions", "startup"}
    assert done["rows"][-1] == {"name": "startup", "bench": "startup", "skipped": "no process could be started"}
    assert [row["sessions"] for row in done["rows"] if row["bench"] == "sessions"] == [1, 2, 2]
    (path,) = (tmp_path / "benchmarks").iterdir()
    assert path.name.endswith(".json") and len(path.read_text().splitlines()) == 1
    assert read_report(path) == done
    again = kept(done)
    assert again.name == f"{path.stem}-2.json", "what was kept stays"


def test_what_a_machine_without_memory_says_is_in_its_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Device):
        def step(self, *_: Any) -> Any:
            raise RuntimeError("[malloc] Unable to allocate")

    monkeypatch.setattr("personaplex.bench.sessions.Device", Full)
    (row,) = report(capsys, "sessions", "--model", TINY, "--frames", "1", "--sessions", "1")["rows"]
    assert row["skipped"] == "[malloc] Unable to allocate" and "p50_ms" not in row


def test_kernels_are_chosen_before_anything_is_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAPLEX_KERNELS", "auto,no-stack")
    flags = ["--model", TINY, "--frames", "1", "--context", "0"]
    rows = report(capsys, "step", *flags, "--kernels", "stock")["rows"]
    assert os.environ["PERSONAPLEX_KERNELS"] == "stock" and rows[0]["operations_by"] == "stock"
    report(capsys, "step", *flags, "--kernels", "auto")
    assert os.environ["PERSONAPLEX_KERNELS"] == "auto"


def test_a_machine_is_named_by_its_gpu_or_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for about, expected in (
        ({"cpu": "Intel(R) Xeon(R) Processor @ 2.50GHz"}, "intel-xeon-2-50ghz"),
        ({"cpu": "x", "gpu": "NVIDIA H200"}, "nvidia-h200"),
        ({"cpu": "Apple M2 Max", "gpu": "Apple M2 Max"}, "apple-m2-max"),
        ({"cpu": ""}, "unknown"),
    ):
        monkeypatch.setattr(machine, "describe_machine", lambda about=about: about)
        assert machine.name() == expected


def test_a_copy_without_history_is_the_commit_that_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_history(*_: object) -> str:
        raise OSError

    monkeypatch.setattr(machine, "_git", no_history)
    monkeypatch.delenv("PERSONAPLEX_COMMIT", raising=False)
    assert machine.commit() == f"version {__version__}"
    monkeypatch.setenv("PERSONAPLEX_COMMIT", "0123456789ab")
    assert machine.commit() == "0123456789ab"


def test_rows_are_seen_when_they_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the benchmark is given up before its end."""

    def given_up(_: Wanted) -> Iterator[Row]:
        yield Row("first", [2.0, 4.0], {"sessions": 64})
        yield Row("second", [], {"skipped": "no room"})
        raise BackendError("given up")

    monkeypatch.setattr("personaplex.bench.sessions.run", given_up)
    assert main(["bench", "sessions"]) != 0
    said = capsys.readouterr().err.splitlines()
    assert said[-3].startswith("first: p50_ms 3.0, p95_ms") and said[-3].endswith("n 2, over_80_ms 0.0, sessions 64")
    assert said[-2] == "second: skipped no room" and "given up" in said[-1]
