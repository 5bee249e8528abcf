"""Conversion: what comes out means what went in, takes little memory, and is never half a model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from personaplex import PersonaPlex
from personaplex.checkpoint import convert as conversion
from personaplex.checkpoint import packing
from personaplex.checkpoint.card import Quality
from personaplex.checkpoint.card import card as card_of
from personaplex.checkpoint.convert import convert, result_config
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.load import quantised
from personaplex.checkpoint.recipe import quantization
from personaplex.checkpoint.sources import UNKNOWN, licence_of
from personaplex.checkpoint.tensors import Entry, TensorFile
from personaplex.checkpoint.writer import TensorWriter
from personaplex.cli.main import main
from personaplex.config import ModelConfig, Packing, Provenance, QuantizationConfig
from personaplex.errors import CheckpointError, ConfigError, OutputError
from personaplex.nn.state import parameters
from tests.conftest import PARITY, edit_config, same
from tests.wide import ROOT, WIDE, write_wide

ABOUT = Provenance("a folder", "", "nvidia/personaplex-7b-v1", "personaplex")
LM_FILE, CODEC_FILE = "model.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder(write_wide(tmp_path_factory.mktemp("wide")))


def converted(source: ModelFolder, out: Path, how: QuantizationConfig | None, **options: bool) -> ModelFolder:
    config = result_config(source.config, how, **({"keep_user_steps": False, "trim_codec": False} | options))
    convert(source, out, config, ABOUT)
    return ModelFolder(out)


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of `personaplex convert` and what it says, which is one line."""
    code = main(["convert", *map(str, arguments)])
    said = capsys.readouterr().err.strip()
    assert code == 0 or said.count("\n") == 0, said
    return code, said


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_script_that_makes_a_model_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was converted at the 7B's size was made by it."""
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "made"), "--config", str(PARITY / "config.json")])
    runpy.run_path(str(ROOT / "scripts" / "random_checkpoint.py"), run_name="__main__")
    made = PersonaPlex.from_pretrained(tmp_path / "made", dtype=mx.float32, compiled=False)
    assert made.list_voices() == [] and len(made.tokenizer.role_tokens("word7")) > 1
    assert {entry.dtype for entry in made.folder.open_lm().entries.values()} == {"BF16"}
    assert 0.019 < float(made.lm.audio_emb.weight.std()) < 0.021 and bool((made.lm.out_norm.weight == 1).all())


@pytest.mark.parametrize("keep", [False, True])
def test_sixteen_bits_are_the_model_itself(folder: ModelFolder, tmp_path: Path, keep: bool) -> None:
    found = converted(folder, tmp_path / "out", None, keep_user_steps=keep)
    assert (found.config.lm.dep_q, len(found.open_lm().entries)) == ((16, 157) if keep else (8, 101))
    steps = 16 if keep else 8
    before, after = (parameters(each.load_lm(steps, mx.bfloat16)) for each in (folder, found))
    assert before.keys() == after.keys() and all(same(after[name], array) for name, array in before.items())
    for name in (CODEC_FILE, "tokenizer_spm_32k_3.model"):
        assert (found.path / name).read_bytes() == (folder.path / name).read_bytes()
    old, new = folder.voices.load("VOICE0"), found.voices.load("VOICE0")
    assert found.voices.names() == ["VOICE0"] and (found.path / "voices" / "VOICE0.safetensors").is_file()
    assert old.embeddings is not None and new.embeddings is not None and old.ring is not None
    assert same(new.embeddings, old.embeddings) and new.embeddings.dtype == old.embeddings.dtype
    assert new.ring is not None and new.ring.tolist() == old.ring.tolist()


@pytest.mark.parametrize(("bits", "most"), [("8", 0.02), ("4", 0.3), ("mixed", 0.3)])
def test_fewer_bits_are_what_is_made_in_memory(wide: ModelFolder, tmp_path: Path, bits: str, most: float) -> None:
    assert main(["convert", str(wide.path), "--out", str(tmp_path / "out"), "--bits", bits, "--group-size", "32"]) == 0
    found = ModelFolder(tmp_path / "out")
    model = wide.load_lm(dtype=mx.float32)
    how = quantization(bits, WIDE.lm, 32)
    assert how is not None and found.config.quantization == how
    loaded, made = parameters(found.load_lm(dtype=mx.float32)), parameters(quantised(model, how))
    assert loaded.keys() == made.keys() and all(same(made[name], array) for name, array in loaded.items())
    frames = mx.random.randint(0, 300, (1, 17, 20), key=mx.random.key(1))
    wanted, heard = (each.teacher_forced(frames) for each in (model, found.load_lm(dtype=mx.float32)))
    for i in (0, 2):
        error = float(mx.sqrt(mx.square(heard[i] - wanted[i]).mean() / mx.square(wanted[i]).mean()))
        sys.stdout.write(f"{bits}: {error:.4f}\n")
        assert 0 < error < most


def test_mixed_is_the_recipe() -> None:
    how = quantization("mixed", WIDE.lm)
    assert how is not None
    layers = [how.of("temporal", f"transformer.layers.{i}.gating.linear_in.weight") for i in range(32)]
    assert layers[0] == layers[31] == Packing(8, 32) and set(layers[1:31]) == {Packing(4, 32)}
    for part, name in (
        ("depformer", "depformer_in.0.weight"),
        ("heads", "text_linear.weight"),
        ("embeddings", "emb.0.weight"),
    ):
        assert how.of(part, name) == Packing(8, 32)
    only = quantization("mixed", WIDE.lm, 64, ["temporal"])
    assert only is not None and only.depformer.bits == 16
    assert only.temporal.group_size == only.exceptions[0].group_size == 64
    without = quantization("mixed", WIDE.lm, None, ["heads"])
    assert without is not None and without.exceptions == () and without.temporal.bits == 16
    with pytest.raises(ConfigError, match="unknown part 'mouth'"):
        quantization("mixed", WIDE.lm, None, ["mouth"])


def test_a_packed_source_is_copied_or_unpacked(wide: ModelFolder, tmp_path: Path) -> None:
    """The same bits again are the same codes; other bits are made of what the codes stand for."""
    eight = QuantizationConfig.uniform(8, 64)
    once = converted(wide, tmp_path / "once", eight)
    twice = converted(once, tmp_path / "twice", eight)
    assert hashes(once.path)[LM_FILE] == hashes(twice.path)[LM_FILE]
    plain = converted(once, tmp_path / "plain", None)
    before, after = parameters(once.load_lm(dtype=mx.float32)), parameters(plain.load_lm(dtype=mx.float32))
    assert all(same(after[name], array.astype(mx.bfloat16)) for name, array in before.items())


def test_a_codec_without_its_unused_codebooks(folder: ModelFolder, tmp_path: Path) -> None:
    """The tiny codec has no more than eight; of one with twelve, four go."""
    source = tmp_path / "source"
    shutil.copytree(PARITY, source)
    codec = dict(mx.load(str(PARITY / CODEC_FILE)))  # type: ignore[arg-type]
    book = "quantizer.rvq_rest.vq.layers.{}._codebook.{}"
    for i in range(7, 11):
        codec |= {book.format(i, part): codec[book.format(0, part)] for part in ("embedding_sum", "cluster_usage")}
        codec |= {book.format(i, "_initialized"): mx.ones(1)}
    mx.save_safetensors(str(source / CODEC_FILE), codec)
    mimi = json.loads((PARITY / "config.json").read_text())["mimi"]
    edit_config(source, mimi=mimi | {"quantizer": mimi["quantizer"] | {"n_q": 12}})
    found = converted(ModelFolder(source), tmp_path / "out", None, trim_codec=True)
    assert found.config.mimi.quantizer.n_q == 8 and len(TensorFile(found.codec_file).entries) == 126
    pcm = mx.random.normal((1, 5 * 1920), key=mx.random.key(0))
    assert same(found.load_mimi().encode(pcm), folder.load_mimi().encode(pcm))


def test_the_folder_says_what_it_is(wide: ModelFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(wide.path), "--out", str(out), "--bits", "mixed"]) == 0
    config = ModelConfig.read(out / "config.json")
    assert config.provenance is not None and config.provenance.source == wide.path.name
    assert config.provenance.source_fingerprint == wide.fingerprint
    stored = {file.name: file.sha256 for file in config.provenance.files}
    assert stored == {name: value for name, value in hashes(out).items() if name not in ("config.json", "README.md")}
    card = (out / "README.md").read_text()
    assert "library_name: mlx" in card and "license: unknown" in card and "base_model:" not in card
    assert "| temporal | 4 | 32 | 1,228,800 |" in card and "| temporal | 8 | 32 | 81,920 |" in card
    quality = Quality("| text | 0.1 |")
    known = dataclasses.replace(config.provenance, base_model="nvidia/personaplex-7b-v1")
    card = card_of(dataclasses.replace(config, provenance=known), quality)
    assert "license_name: nvidia-open-model-license" in card and "base_model: nvidia/personaplex-7b-v1\n" in card
    assert "base_model_relation: quantized" in card and "| text | 0.1 |" in card and "Not measured" not in card
    assert f"Beside `{wide.path.name}`: it talked" in card


def test_every_base_has_the_licence_that_it_is_shown_with(wide: ModelFolder) -> None:
    """One table: what `info` says of a repository, and the head of the card of what is made of it."""
    heads = {
        "nano": "license: mit\n",
        "nvidia/personaplex-7b-v1": "license: other\nlicense_name: nvidia-open-model-license\nlicense_link: https://www.nv",
        "aufklarer/PersonaPlex-7B-MLX-8bit": "license: other\nlicense_name: nvidia-open-model-license\n",
        "kyutai/personaplex-rl-seamless": "license: cc-by-nc-4.0\n",
        "kyutai/moshika-pytorch-bf16": "license: cc-by-4.0\n",
        "some/body": "license: unknown\n",
        "": "license: unknown\n",
    }
    for base, head in heads.items():
        config = dataclasses.replace(wide.config, provenance=Provenance("x", "", base, "personaplex"))
        card = card_of(config, Quality())
        assert head in card and licence_of(base).url in card, base
        assert ("base_model:" in card) == ("/" in base)
        assert ("before you share it" in card) == (licence_of(base) == UNKNOWN)


def test_a_file_that_is_not_the_one_that_was_written(
    wide: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another size: seen when it is opened. Of another content: when the folder is converted again, or verified."""
    out = converted(wide, tmp_path / "out", QuantizationConfig.uniform(4, 64)).path
    names = [str(path.relative_to(out)) for path in out.rglob("*") if path.suffix in (".safetensors", ".model")]
    assert sorted(ModelFolder(out).verify()) == sorted(names) and wide.verify() == []
    for name in names:
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=f"{name} is another file: its SHA-256 is"):
            ModelFolder(out).verify()
        (out / name).write_bytes(whole)
    weights = out / LM_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, line = run(out, "--out", tmp_path / "again", capsys=capsys)
    assert code == 4 and f"{weights} is another file" in line and not (tmp_path / "again").exists()
    assert main(["info", str(out), "--verify"]) == 4 and "is another file" in capsys.readouterr().err
    weights.write_bytes(whole)
    assert main(["info", str(out), "--verify"]) == 0
    told = capsys.readouterr().out
    assert "verified      model.safetensors, " in told and "made of       a folder, by personaplex\n" in told
    (out / "tokenizer_spm_32k_3.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is 1 bytes long, not 5094 as config.json says"):
        ModelFolder(out).load_tokenizer()
    (out / "tokenizer_spm_32k_3.model").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer_spm_32k_3.model, which belongs to it"):
        ModelFolder(out).verify()
    edit_config(out, provenance=vars(ABOUT) | {"files": [{"name": "../x", "n_bytes": 1, "sha256": ""}]})
    with pytest.raises(ConfigError, match=r"'../x' is not one of its folder"):
        ModelFolder(out).verify()


def test_memory_is_that_of_a_tensor_and_not_of_the_model(
    wide: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the 475 names at width 64; blocks are as small beside the largest tensor as they are in the 7B."""
    monkeypatch.setattr(packing, "AT_ONCE", 1 << 12)
    sizes = [entry.n_bytes for entry in wide.open_lm().entries.values()]
    assert len(sizes) == 475 and sum(sizes) > 20 * max(sizes)
    config = result_config(wide.config, QuantizationConfig.uniform(4, 32), keep_user_steps=True, trim_codec=False)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    convert(wide, tmp_path / "out", config, ABOUT)
    peak = (mx.get_peak_memory() - before) / max(sizes)
    sys.stdout.write(f"peak: {peak:.2f} of the largest tensor\n")
    assert 1 < peak < 4


def test_the_benchmark_prints_a_row_and_leaves_nothing(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "convert_benchmark.py"
    command = [sys.executable, str(script), str(PARITY), "--work", str(tmp_path), "--bits", "16"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    _, bits, seconds, cpu, peak, _, _, _ = said.splitlines()[-1].split("|")
    assert bits == " 16 " and float(cpu) >= 0 and float(seconds) >= 0 and 0.02 < float(peak) < 2
    assert not list(tmp_path.iterdir())


SMALL_SHARD = 1_200_000


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "SHARD_BYTES", SMALL_SHARD)


DRIVER = """
import os, resource, signal, sys
from personaplex.checkpoint import convert
from personaplex.cli.main import main
convert.SHARD_BYTES = {shard}
{before}
sys.exit(main(["convert", {source!r}, "--out", {out!r}, "--bits", "4"]))
"""
KILL = """
from personaplex.cli import convert as cli
cli._progress = lambda: lambda done, total: os.kill(os.getpid(), signal.{signal}) if done > total / 2 else None
"""
LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


def interrupted(wide: ModelFolder, out: Path, before: str) -> subprocess.CompletedProcess[str]:
    """A conversion in a process of its own in which something happens."""
    code = DRIVER.format(shard=SMALL_SHARD, before=before, source=str(wide.path), out=str(out))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def straight(wide: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the conversion of `interrupted` makes when nothing happens."""
    out = tmp_path_factory.mktemp("straight") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "SHARD_BYTES", SMALL_SHARD)
        assert main(["convert", str(wide.path), "--out", str(out), "--bits", "4"]) == 0
    found = hashes(out)
    assert 8 < sum(name.startswith("model-") for name in found) < 12
    return found


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_after_an_interruption_what_is_whole_is_kept(
    wide: ModelFolder, tmp_path: Path, straight: dict[str, str], name: str
) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.unfinished"
    ended = interrupted(wide, out, KILL.format(signal=name))
    if name == "SIGINT":
        assert ended.returncode == 130 and "the same command goes on where it was" in ended.stderr
    else:
        assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    whole = json.loads((work / "whole.json").read_text())
    written = {path.name: path.stat().st_mtime_ns for path in work.glob("model-*")}
    assert 2 <= len(whole) < len(written) < 12
    damaged, *kept = sorted(whole)
    data = bytearray((work / damaged).read_bytes())
    data[-1] ^= 1
    (work / damaged).write_bytes(data)
    assert main(["convert", str(wide.path), "--out", str(out), "--bits", "4"]) == 0
    assert hashes(out) == straight and not work.exists()
    assert all((out / file).stat().st_mtime_ns == written[file] for file in kept)
    assert (out / damaged).stat().st_mtime_ns > max(written.values())


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize("journal", ["[1]", "{"])
def test_a_damaged_journal_costs_work_and_nothing_else(
    wide: ModelFolder, tmp_path: Path, straight: dict[str, str], journal: str
) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.unfinished"
    interrupted(wide, out, KILL.format(signal="SIGKILL").replace("/ 2", "/ 4"))
    (work / "whole.json").write_text(journal)
    assert main(["convert", str(wide.path), "--out", str(out), "--bits", "4"]) == 0 and hashes(out) == straight


@pytest.mark.usefixtures("shards")
def test_another_conversion_begins_anew(wide: ModelFolder, tmp_path: Path, straight: dict[str, str]) -> None:
    out, work = tmp_path / "out", tmp_path / ".out.unfinished"
    interrupted(wide, out, KILL.format(signal="SIGKILL").replace("/ 2", "/ 4"))
    (work / "plan").mkdir()
    before = json.loads((work / "whole.json").read_text())
    assert before and main(["convert", str(wide.path), "--out", str(out), "--bits", "8"]) == 0
    assert ModelFolder(out).config.quantization == QuantizationConfig.uniform(8, 64) and not (out / "plan").exists()


def test_a_full_disk_is_one_line_and_the_work_goes_on_later(
    wide: ModelFolder, tmp_path: Path, straight: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ended = interrupted(wide, out, LIMIT.format(size=2_000_000))  # the codec is larger
    assert ended.returncode == OutputError.exit_code and ended.stderr.count("\n") == 1
    assert "File too large; make room and run the same command again: what is whole is kept" in ended.stderr
    assert not out.exists()
    monkeypatch.setattr(conversion, "SHARD_BYTES", SMALL_SHARD)
    assert main(["convert", str(wide.path), "--out", str(out), "--bits", "4"]) == 0
    assert hashes(out) == straight


def test_too_small_a_disk_is_known_before(
    wide: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    code, said = run(wide.path, "--out", tmp_path / "out", capsys=capsys)
    assert code == 6 and "out needs 0.01 GB, and 0.00 GB are free there; make room" in said
    assert not list(tmp_path.glob(".out.unfinished/model*"))


def test_what_stands_there_is_never_touched(
    wide: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    (tmp_path / "file").write_text("y")
    for name in ("out", "file"):
        assert run(wide.path, "--out", tmp_path / name, capsys=capsys)[1].endswith("name another folder, or remove it")
    (tmp_path / ".new.unfinished").mkdir()
    (tmp_path / ".new.unfinished" / "precious").write_text("z")
    code, said = run(wide.path, "--out", tmp_path / "new", capsys=capsys)
    assert code == 6 and "is needed to work in, and is not ours" in said
    code, said = run(wide.path, "--out", tmp_path / "no" / "out", capsys=capsys)
    assert code == 6 and "does not exist; create it or choose another" in said
    assert [path.read_text() for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["z", "y", "x"]


def test_two_at_once_do_not_share_a_folder(
    wide: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with conversion._workplace(out, "someone else's"):
        code, said = run(wide.path, "--out", out, capsys=capsys)
    assert code == 6 and "is being made by another process" in said and not out.exists()


def test_a_folder_that_appeared_meanwhile_is_left_alone(wide: ModelFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = result_config(wide.config, None, keep_user_steps=False, trim_codec=False)

    def appear(_: Path) -> Quality:
        out.mkdir()
        return Quality()

    with pytest.raises(OutputError, match="has come into being meanwhile; the model is whole in"):
        convert(wide, out, config, ABOUT, measure=appear)
    assert not list(out.iterdir())


def damaged(wide: ModelFolder, to: Path, how: object) -> Path:
    shutil.copytree(wide.path, to)
    loaded = mx.load(str(to / LM_FILE))
    assert isinstance(loaded, dict)
    how(loaded)  # type: ignore[operator]
    mx.save_safetensors(str(to / LM_FILE), loaded)
    return to


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: t.update({"extra.weight": mx.zeros(1)}), "unknown tensor 'extra.weight'"),
        (lambda t: t.pop("linears.12.weight"), "'linears.12.weight' [2048, 64] is missing"),
        (lambda t: t.update({"out_norm.alpha": mx.ones((1, 1, 32))}), "'out_norm.alpha' has shape [1, 1, 32]"),
        (lambda t: t.update({"emb.3.weight": t["emb.3.weight"] * mx.inf}), "'emb.3.weight' holds values that are not"),
        (lambda t: t.update({"out_norm.alpha": mx.full((1, 1, 64), mx.nan)}), "'out_norm.alpha' holds values that are"),
    ],
)
def test_a_tensor_that_is_wrong_is_one_line(
    wide: ModelFolder, tmp_path: Path, damage: object, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(damaged(wide, tmp_path / "bad", damage), "--out", tmp_path / "out", capsys=capsys)
    assert code == 4 and says in said and not (tmp_path / "out").exists()


def test_a_config_that_disagrees_is_one_line(
    wide: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(wide.path, source)
    lm = json.loads((source / "config.json").read_text())["lm"]
    edit_config(source, lm=lm | {"num_layers": 31})
    code, said = run(source, "--out", tmp_path / "out", capsys=capsys)
    assert code == 4 and "unknown tensor 'transformer.layers.31." in said and "does not fit the configuration" in said
    edit_config(source, lm=lm, quantization={"temporal": {"bits": 4, "group_size": 32}})
    code, said = run(source, "--out", tmp_path / "out", capsys=capsys)
    assert code == 4 and "'transformer.layers.0.self_attn.in_proj_weight' has shape [192, 64], expected" in said


def test_a_group_size_that_does_not_divide_is_one_line(
    wide: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, said = run(wide.path, "--out", out, "--group-size", "128", capsys=capsys)
    assert code == 4 and "groups of 128 do not divide the 64 columns of" in said and "groups of 32 and 64 do" in said
    code, said = run(PARITY, "--out", out, capsys=capsys)
    assert code == 4 and "16 columns" in said and "none do: leave temporal at 16 bits" in said
    code, said = run(wide.path, "--out", out, "--quantize", "temporal,mouth", capsys=capsys)
    assert code == 2 and "'temporal,mouth' is not some of temporal" in said
    code, said = run(wide.path, "--out", out, "--bits", "16", "--quantize", "heads", capsys=capsys)
    assert code == 2 and "are for fewer bits than 16" in said
    assert not list(tmp_path.iterdir())


def test_a_voice_that_is_damaged_is_known_before_the_work(
    wide: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(wide.path, source)
    (source / "voices" / "VOICE0.pt").write_bytes(b"x")
    code, said = run(source, "--out", tmp_path / "out", capsys=capsys)
    assert code == 4 and "VOICE0.pt is not a PyTorch file" in said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.usefixtures("shards")
def test_parts_of_a_model_are_checked(wide: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = converted(wide, tmp_path / "out", QuantizationConfig.uniform(4, 64)).path
    index, (first, part, *_) = out / "model.safetensors.index.json", ModelFolder(out).lm_files
    whole, said = part.read_bytes(), json.loads(index.read_text())
    assert set(said["weight_map"].values()) == {path.name for path in ModelFolder(out).lm_files}
    part.write_bytes(whole[:-100])
    code, line = run(out, "--out", tmp_path / "again", capsys=capsys)
    assert code == 4 and f"{part} is {len(whole) - 100} bytes long, not {len(whole)} as config.json says" in line
    part.unlink()
    with pytest.raises(CheckpointError, match=f"holds no {part.name}"):
        ModelFolder(out).load_lm()
    edit_config(out, provenance=None)
    part.write_bytes(whole)
    first.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is in another file as well"):
        ModelFolder(out).load_lm()
    for bad in ("{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 3}}'):
        index.write_text(bad)
        with pytest.raises(CheckpointError, match="is not the index of a model's parts"):
            ModelFolder(out).load_lm()
    (out / LM_FILE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds both"):
        ModelFolder(out).load_lm()


def test_what_is_not_read_back_as_written_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with TensorWriter(path, {"a": Entry("F32", (4,)), "b": Entry("BF16", (2, 3))}) as writer:
        writer.put("b", mx.ones((2, 3), mx.bfloat16))
        writer.put("a", mx.arange(4, dtype=mx.float32))
        digest = writer.finish()
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict) and loaded["a"].tolist() == [0, 1, 2, 3] and loaded["b"].shape == (2, 3)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x00")
        with pytest.raises(OutputError, match="'b' is not read back as it was written"):
            writer.finish()
