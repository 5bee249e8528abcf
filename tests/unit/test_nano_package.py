"""nano in the package: int8 files, the name `nano`, the configuration's text, and the script that packs it all."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder

from personaplex import PersonaPlex
from personaplex.checkpoint import hub
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import load_mimi
from personaplex.checkpoint.store import as_int8, write_config, write_int8
from personaplex.checkpoint.tensors import TensorFile
from personaplex.config import LMConfig, ModelConfig, QuantizationConfig, SamplingDefaults
from personaplex.errors import CheckpointError, OutputError, PersonaError
from personaplex.models.lm import LanguageModel
from personaplex.models.mimi import Mimi
from personaplex.speech import AGENTS
from personaplex.train.bank import Bank
from tests.conftest import PARITY, peak_error, same
from tests.unit.test_checkpoint import stored

ROOT = Path(__file__).parents[2]
LM_FILE, MIMI_FILE = "model.safetensors", "mimi.safetensors"
TINY_MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model stored as int8."""
    folder = tmp_path_factory.mktemp("int8")
    for source, target in ((LM_FILE, LM_FILE), (TINY_MIMI, MIMI_FILE)):
        write_int8(folder / target, stored(PARITY / source))
    shutil.copy(PARITY / "config.json", folder)
    return folder


@pytest.mark.parametrize(("source", "target"), [(LM_FILE, LM_FILE), (TINY_MIMI, MIMI_FILE)])
def test_every_value_is_within_half_a_step_of_its_row(int8_folder: Path, source: str, target: str) -> None:
    file, n_int8 = TensorFile(int8_folder / target), 0
    scales = stored(int8_folder / target)
    for name, array in stored(PARITY / source).items():
        if name.endswith((".embedding_sum", ".cluster_usage")):
            continue
        found = file.take(name)
        assert found.dtype == mx.float32 and found.shape == array.shape
        scale = scales.get(f"{name}.scale")
        if scale is None:
            assert sum(n > 1 for n in array.shape) < 2 and same(found, array.astype(mx.float32)), name
            continue
        error = mx.abs(found - array.astype(mx.float32)).reshape(array.shape[0], -1).max(axis=1)
        assert bool((error <= 0.5001 * scale).all().item()), name
        n_int8 += 1
    assert n_int8 > 20


def test_the_language_model_says_nearly_the_same(int8_folder: Path, lm: LanguageModel) -> None:
    small = ModelFolder(int8_folder).load_lm(dtype=mx.float32)
    frames = mx.random.randint(0, 300, (1, 17, 20), key=mx.random.key(1))
    for found, expected in zip(small.teacher_forced(frames), lm.teacher_forced(frames), strict=True):
        assert peak_error(found, expected) < 0.1
    sizes = [(folder / LM_FILE).stat().st_size for folder in (int8_folder, PARITY)]
    assert sizes[0] < 0.7 * sizes[1]


def test_the_codec_keeps_its_codebooks(int8_folder: Path, mimi: Mimi, speech: np.ndarray) -> None:
    small = load_mimi(int8_folder / MIMI_FILE, ModelConfig.read(PARITY / "config.json").mimi)
    for ours, theirs in ((small.quantizer.semantic, mimi.quantizer.semantic),
                         (small.quantizer.acoustic, mimi.quantizer.acoustic)):  # fmt: skip
        assert peak_error(ours.centroids, theirs.centroids) < 1e-3
    codes = mimi.encode(mx.array(speech)[None])
    assert peak_error(small.decode(codes), mimi.decode(codes)) < 0.1


def test_kept_tensors_stay_float(tmp_path: Path) -> None:
    matrix = mx.random.normal((4, 6), key=mx.random.key(0))
    tensors = {"a.weight": matrix, "b.weight": 1e5 * matrix, "c.alpha": mx.ones((1, 1, 6)), "d.weight": matrix}
    write_int8(tmp_path / "x.safetensors", tensors, keep=lambda name, shape: name[0] in "ab" and shape == (4, 6))
    entries = TensorFile(tmp_path / "x.safetensors").entries
    assert {name: entry.dtype for name, entry in entries.items()} == {
        "a.weight": "F16", "b.weight": "F32", "c.alpha": "F32", "d.weight": "I8", "d.weight.scale": "F32",
    }  # fmt: skip


def test_rows_of_any_size() -> None:
    rows = mx.array([[0.0, 0.0], [1e-38, -1e-38], [1e-9, -3e-9], [3e38, 1.0]])
    levels, scale = as_int8(rows)
    assert levels[0].tolist() == [0, 0] and levels[2].tolist() == [42, -127] and levels[3].tolist() == [127, 0]
    back = levels.astype(mx.float32) * scale[:, None]
    assert bool((mx.abs(back - rows) <= 0.5001 * mx.maximum(scale, 1e-37)[:, None]).all().item())


Damage = Callable[[dict[str, mx.array]], object]
NAME = "text_linear.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: t.pop(NAME), f"'{NAME}' .* is missing"),
        (lambda t: t.pop(f"{NAME}.scale"), f"'{NAME}' is I8, but its '{NAME}.scale' is missing"),
        (lambda t: t.update({f"{NAME}.scale": mx.ones(7)}), f"'{NAME}.scale' is F32 .7., expected F32 or F16 .320."),
        (lambda t: t.update({f"{NAME}.scale": mx.ones((320, 1))}), f"'{NAME}.scale' is F32 .320, 1."),
        (lambda t: t.update({f"{NAME}.scale": mx.ones(320, mx.int32)}), f"'{NAME}.scale' is I32"),
        (lambda t: t.update({f"{NAME}.scale": mx.full(320, mx.nan)}), f"'{NAME}.scale' holds values that are no sc"),
        (lambda t: t.update({f"{NAME}.scale": mx.full(320, -1.0)}), f"'{NAME}.scale' holds values that are no scales"),
        (lambda t: t.update({f"{NAME}.scale": mx.full(320, mx.inf)}), f"'{NAME}.scale' holds values that are no sc"),
        (lambda t: t.update({NAME: mx.zeros((320, 16))}), f"'{NAME}.scale' is there, but '{NAME}' is F32"),
        (lambda t: t.update({NAME: mx.zeros((320, 15), mx.int8)}), f"'{NAME}' has shape"),
        (lambda t: t.update({"extra.scale": mx.ones(3)}), r"unknown tensor 'extra\.scale'"),
    ],
)
def test_a_scale_that_is_wrong_is_named(int8_folder: Path, tmp_path: Path, damage: Damage, says: str) -> None:
    tensors = stored(int8_folder / LM_FILE)
    damage(tensors)
    mx.save_safetensors(str(tmp_path / LM_FILE), tensors)
    shutil.copy(PARITY / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=says):
        ModelFolder(tmp_path).load_lm()


def test_only_rows_can_be_scaled(tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"x": mx.zeros(3, mx.int8), "x.scale": mx.ones(3)})
    with pytest.raises(CheckpointError, match="only rows can be scaled"):
        TensorFile(tmp_path / "x.safetensors").check({"x": (3,)})


def test_half_scales_and_bare_int8(tmp_path: Path) -> None:
    """Codes may be int8 too: without a scale they are what they are."""
    tensors = {"x": mx.array([[2, -4]], mx.int8), "x.scale": mx.array([0.5], mx.float16), "codes": mx.ones(2, mx.int8)}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), tensors)
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.take("x").tolist() == [[1.0, -2.0]] and file.take("codes").dtype == mx.int8


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"'b\.weight' holds values that are not finite"):
        write_int8(path, {"a": mx.ones(2), "b.weight": mx.full((2, 2), mx.nan)})
    with pytest.raises(CheckpointError, match=r"'w\.scale' is a tensor of its own"):
        write_int8(path, {"w": mx.ones((2, 2)), "w.scale": mx.ones(2)})
    with pytest.raises(OutputError, match="does not exist"):
        write_int8(tmp_path / "no" / "x.safetensors", {"a": mx.ones(2)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig.read(PARITY / "config.json"),
        ModelConfig(
            lm=LMConfig(dim=8, num_heads=2, hidden_scale=8 / 3, depformer_context=8),
            silence_codes=tuple(range(8)),
            sampling=SamplingDefaults(text_temp=0.0),
            quantization=QuantizationConfig.uniform(4, 64, ("heads",)),
            version="nano 1 – ü",
        ),
    ],
)
def test_a_configuration_is_read_as_it_was_written(tmp_path: Path, config: ModelConfig) -> None:
    path = tmp_path / "config.json"
    write_config(path, config)
    assert ModelConfig.read(path) == config
    named = json.loads(path.read_text(encoding="utf-8"))
    assert set(named) == {field.name for field in dataclasses.fields(ModelConfig)}


def test_nano_is_a_name_and_not_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the working folder, `nano` is the bundled model, and nobody asks the network."""
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "bundled", lambda _: PARITY)
    assert hub.resolve("nano") == PARITY
    assert hub.resolve("./nano") == hub.resolve(Path("nano")) == Path("nano")
    assert PersonaPlex.from_pretrained("nano").folder.path == PARITY


def test_what_is_missing_in_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "package_files", lambda package: tmp_path)
    (tmp_path / "nano").mkdir()
    for name in hub.BUNDLED_FILES:
        with pytest.raises(CheckpointError, match=f"nano is not complete: .* holds no {name}"):
            hub.resolve("nano")
        (tmp_path / "nano" / name).write_bytes(b"")
    assert hub.resolve("nano") == tmp_path / "nano"


def test_the_codec_alone_needs_no_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "package_files", lambda package: tmp_path)
    (tmp_path / "nano").mkdir()
    for name in ("config.json", "mimi.safetensors"):
        with pytest.raises(CheckpointError, match=f"holds no {name}"):
            hub.resolve("nano", hub.CODEC_FILES)
        (tmp_path / "nano" / name).write_bytes(b"")
    assert hub.resolve("nano", hub.CODEC_FILES) == tmp_path / "nano"
    with pytest.raises(CheckpointError, match="holds no voices"):
        hub.resolve("nano", hub.VOICE_FILES)


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "pack_nano.py"))


def tiny_bank() -> Bank:
    """Three clips by each agent, of which two are greetings."""
    lines = [("greet", ("ann", "books"), ""), ("thanks", (), ""), ("greet", ("bob", "books"), "")] * 18
    return Bank(
        codes=np.arange(54 * 16 * 8).reshape(-1, 8) % 2048,
        begins=16 * np.arange(55),
        kinds=["agent"] * 54,
        voices=np.arange(54) // 3,
        lines=list(lines),
        rings=np.zeros(54, np.int64),
        pauses=np.zeros((54, 2), np.int64),
        words=np.zeros((0, 4), np.int64),
        word_begins=np.zeros(55, np.int64),
        vocabulary=[],
        start=np.zeros((40, 8), np.int64),
        silence=np.arange(8),
        sine=np.arange(8, 16),
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """What two finished training runs leave."""
    config = json.loads((PARITY / "config.json").read_text())
    for name, field, source, target in (("codec", "mimi", TINY_MIMI, MIMI_FILE), ("lm", "lm", LM_FILE, LM_FILE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({field: config[field], "steps": 3}))
        shutil.copy(PARITY / source, tmp_path / name / target)
    return tmp_path


def packed(script: dict[str, Any], runs: Path, **changes: Any) -> Path:
    bank, out = tiny_bank(), runs / "nano"
    config = script["config_of"](runs / "codec", runs / "lm", bank)
    arguments = {"config": config, "voices": script["voices_of"](bank), "out": out} | changes
    script["pack"](runs / "codec", runs / "lm", tokenizer=PARITY / "tokenizer_spm_32k_3.model", **arguments)
    return out


def test_packing_makes_a_model_that_answers(
    script: dict[str, Any], runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "nano").mkdir()
    (runs / "nano" / "README.md").write_text("kept")
    folder = packed(script, runs)
    assert {path.name for path in folder.iterdir()} == {*hub.BUNDLED_FILES, "README.md"}
    assert sorted(path.name for path in runs.iterdir()) == ["codec", "lm", "nano"]
    table = capsys.readouterr().out
    assert f"{sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()):,}" in table and "NATM0" in table
    monkeypatch.setattr(hub, "bundled", lambda _: folder)
    model = PersonaPlex.from_pretrained("nano")
    assert model.list_voices() == sorted(AGENTS) and model.default_voice == "NATM0"
    assert model.config.silence_codes == tuple(range(8)) and model.sampling().text_temperature == 0
    first = model.load_voice(next(iter(AGENTS)))
    assert first.codes is not None
    assert first.codes.tolist() == [*tiny_bank().clip(0).tolist(), *tiny_bank().clip(2)[:14].tolist()]
    reply = model.respond(np.zeros(3840, np.float32), max_steps=2, seed=1)
    assert reply.tokens.shape == (17, 4) and reply.tokens.max() < 2048


def test_too_large_or_not_whole_is_not_packed(script: dict[str, Any], runs: Path) -> None:
    with pytest.raises(SystemExit, match=r"bytes, .* more than 10,000"):
        packed(script, runs, most_bytes=10_000)
    with pytest.raises(PersonaError, match="X9"):
        packed(script, runs, voices={"X9": np.full((30, 8), 5000)})
    with pytest.raises(SystemExit, match="too few greetings by"):
        script["voices_of"](dataclasses.replace(tiny_bank(), begins=np.arange(55)))
    (runs / "lm" / LM_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match=LM_FILE):
        packed(script, runs)
    assert not (runs / "nano").exists()


def test_the_wheel_holds_nano(tmp_path: Path) -> None:
    """What an installed package needs is in the wheel, and is found there from anywhere."""
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    folder = "personaplex/nano"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith(folder)}
        archive.extractall(tmp_path / "site")
    source = ROOT / "src" / folder
    assert names == {f"{folder}/{p.relative_to(source).as_posix()}" for p in source.rglob("*") if p.is_file()}
    ask = "from personaplex.checkpoint import hub; print(hub.package_files('personaplex') / 'nano')"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    said = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert said.stdout.decode().strip() == str(tmp_path / "site" / folder)
