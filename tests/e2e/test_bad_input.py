"""What users get wrong: one clear line on stderr, the documented exit code, no traceback, no half-written file."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from personaplex.cli.main import main
from tests.conftest import PARITY, edit_config

USAGE, AUDIO, CHECKPOINT, PERSONA, OUTPUT = 2, 3, 4, 5, 6


class Scene:
    """A folder with a good model and a good question; `change` spoils something, `run` shows what happens."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.capsys = capsys

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return name

    def respond(self, *arguments: object, source: str = "question.wav", out: str = "out.wav") -> tuple[int, str]:
        before = self._files()
        command = [
            "respond",
            "--model",
            str(self.model),
            "--voice",
            "VOICE0",
            "--max-steps",
            "2",
            "-i",
            source,
            "-o",
            out,
        ]
        code = main([*command, *map(str, arguments)])
        printed = self.capsys.readouterr()
        if code != 0:
            lines = printed.err.splitlines()
            assert printed.out == "" and len(lines) == 1, printed
            assert lines[0].startswith("personaplex: ") and "Traceback" not in lines[0]
            assert self._files() == before, "nothing may be left behind"
        return code, printed.err

    def _files(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*"))


@pytest.fixture
def scene(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, speech: np.ndarray
) -> Scene:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PARITY, tmp_path / "model", ignore=shutil.ignore_patterns("expected*"))
    soundfile.write(tmp_path / "question.wav", speech[:5000], 24_000)
    return Scene(tmp_path, capsys)


def wav(samples: np.ndarray, rate: int = 24_000, subtype: str = "PCM_16") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype=subtype)
    return out.getvalue()


SOUND = np.random.default_rng(0).normal(0, 0.1, 12_000)
RECORDINGS: dict[str, tuple[bytes | None, int, str]] = {
    "missing": (None, AUDIO, "does not exist"),
    "empty": (b"", AUDIO, "is empty"),
    "zero length": (wav(SOUND[:0]), AUDIO, "holds no samples"),
    "cut short": (wav(SOUND)[:9000], AUDIO, "cut short"),
    "cut in its header": (wav(SOUND)[:30], AUDIO, "not a recording"),
    "NaN": (wav(np.where(SOUND > 0.3, np.nan, SOUND), subtype="FLOAT"), AUDIO, "not numbers"),
    "not audio": (b"%PDF-1.7 nothing to hear", AUDIO, "not a recording"),
    "silent": (wav(0 * SOUND), 0, "the recording is silent"),
    "a hundredth of a second": (wav(SOUND[:240]), 0, "wrote out.wav"),
    "stereo": (wav(np.stack([SOUND, SOUND], axis=1)), 0, "wrote out.wav"),
    "8 kHz": (wav(SOUND, 8000), 0, "wrote out.wav"),
}


@pytest.mark.parametrize("kind", RECORDINGS)
def test_recordings(scene: Scene, kind: str) -> None:
    data, code, says = RECORDINGS[kind]
    source = scene.write("in.wav", data) if data is not None else "in.wav"
    found, line = scene.respond(source=source)
    assert (found, says in line) == (code, True), line


def test_three_hours(scene: Scene) -> None:
    with soundfile.SoundFile(scene.folder / "long.wav", "w", 8000, 1, "PCM_U8") as sound:
        for _ in range(180):
            sound.write(np.zeros(8000 * 60, np.int16))
    code, line = scene.respond(source="long.wav")
    assert code == AUDIO and "3:00:00 long" in line and "--max-input-seconds" in line


def test_a_folder_as_a_recording(scene: Scene) -> None:
    assert scene.respond(source="model")[0] == AUDIO


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--voice", "NATF7"], PERSONA, "unknown voice 'NATF7'; this model has VOICE0"),
        (["--voice", "./none.pt"], PERSONA, "cannot be read"),
        (["--voice", "./none.wav"], PERSONA, "does not exist"),
        (["--voice", "question.wav"], AUDIO, "at least 0.4 s"),
        (["--system-prompt", "teachr"], PERSONA, "presets are assistant"),
        (["--persona", "nobody"], PERSONA, "unknown persona 'nobody'; there are aria"),
        (["--personas", "nothing.toml"], PERSONA, "cannot be read"),
        (["--system-prompt", "question.wav"], PERSONA, "cannot be read as text"),
        (["--system-prompt", "teacher", "--system-prompt-text", "x y"], USAGE, "not both"),
        (["--model", "no/such/folder"], CHECKPOINT, "no/such/folder"),
        (["--model", "nowhere"], CHECKPOINT, "nowhere does not exist"),
        (["--colour", "red"], USAGE, "No such option"),
        (["--max-steps", "many"], USAGE, "not a valid integer"),
        (["--max-seconds", "2"], USAGE, "not both"),
        (["--max-steps", "-1"], USAGE, "0 or more"),
        (["--chunk-frames", "0"], USAGE, "at least 1"),
        (["--audio-temp", "-1"], USAGE, "must be from 0"),
        (["--text-top-k", "-1"], USAGE, "must be 0"),
        (["--text-top-k", "1000000000000"], USAGE, "must be 0"),
        (["-o", "x" * 300 + ".wav"], OUTPUT, "too long"),
        (["--max-input-seconds", "nan"], USAGE, "more than 0"),
        (["--repetition-penalty", "0.1"], USAGE, "must be from 1"),
        (["--seed", "-4"], USAGE, "seed is -4"),
        (["-o", "no/folder/out.wav"], OUTPUT, "does not exist"),
        (["-o", "model"], OUTPUT, "is a folder"),
        (["-o", "question.wav"], USAGE, "choose another name"),
        (["--voice", "none.wav"], PERSONA, "none.wav does not exist"),
        (["--model", "question.wav"], CHECKPOINT, "is a file"),
        (["-o", "out.doc"], USAGE, "suffix"),
        (["-o", "-", "--json"], USAGE, "name a file"),
        (["-o", "/proc/out.wav"], OUTPUT, "cannot write"),
    ],
)
def test_options(scene: Scene, arguments: list[str], code: int, says: str) -> None:
    found, line = scene.respond(*arguments)
    assert (found, says in line) == (code, True), line


def test_no_recording_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["respond", "--model", str(PARITY)]) == USAGE
    assert "--input is missing" in capsys.readouterr().err


def hostile_pt() -> bytes:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch hacked",)

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("v/data.pkl", pickle.dumps({"embeddings": Evil()}, protocol=2))
    return out.getvalue()


def test_a_hostile_voice(scene: Scene) -> None:
    scene.write("evil.pt", hostile_pt())
    code, line = scene.respond("--voice", "./evil.pt")
    assert code == CHECKPOINT and "system" in line and not (scene.folder / "hacked").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../evil.pt", tarfile.REGTYPE), ("voices/evil.pt", tarfile.SYMTYPE), ("/evil.pt", tarfile.REGTYPE)],
)
def test_a_hostile_archive_of_voices(scene: Scene, name: str, kind: bytes) -> None:
    shutil.rmtree(scene.model / "voices")
    with tarfile.open(scene.model / "voices.tgz", "w:gz") as archive:
        archive.add(PARITY / "voices" / "VOICE0.pt", "voices/VOICE0.pt")
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info, io.BytesIO())
    code, line = scene.respond()
    assert code == CHECKPOINT and name in line


def test_a_good_archive_of_voices(scene: Scene) -> None:
    shutil.rmtree(scene.model / "voices")
    with tarfile.open(scene.model / "voices.tgz", "w:gz") as archive:
        archive.add(PARITY / "voices" / "VOICE0.pt", "voices/VOICE0.pt")
    assert scene.respond()[0] == 0


def drop(tensors: dict[str, mx.array]) -> None:
    del tensors["text_linear.weight"]


def rename(tensors: dict[str, mx.array]) -> None:
    tensors["text_linear.wait"] = tensors.pop("text_linear.weight")


def reshape(tensors: dict[str, mx.array]) -> None:
    tensors["text_linear.weight"] = tensors["text_linear.weight"].T


@pytest.mark.parametrize("spoil", [drop, rename, reshape])
def test_a_checkpoint_with_a_wrong_tensor(scene: Scene, spoil: Callable[[dict[str, mx.array]], None]) -> None:
    path = scene.model / "model.safetensors"
    tensors = mx.load(str(path))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    spoil(tensors)
    mx.save_safetensors(str(path), tensors)
    code, line = scene.respond()
    assert code == CHECKPOINT and "text_linear.weight" in line


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.9])
def test_a_checkpoint_that_was_cut(scene: Scene, name: str, keep: float) -> None:
    path = scene.model / name
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    code, line = scene.respond()
    assert code == CHECKPOINT and name in line


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"]
)
def test_a_model_without_one_of_its_files(scene: Scene, name: str) -> None:
    (scene.model / name).unlink()
    code, line = scene.respond()
    assert code == CHECKPOINT and "holds no" in line


def test_a_config_with_an_unknown_field(scene: Scene) -> None:
    edit_config(scene.model, colour="red")
    code, line = scene.respond()
    assert code == CHECKPOINT and "'colour'" in line


def test_a_model_that_does_not_fit_its_config(scene: Scene) -> None:
    (scene.model / "config.json").unlink()
    code, line = scene.respond()
    assert code == CHECKPOINT and "pieces" in line


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["codec", "encode", "none.wav", "c.safetensors"], AUDIO),
        (["codec", "encode", "question.wav", "c.txt"], USAGE),
        (["codec", "encode", "question.wav", "no/c.safetensors"], OUTPUT),
        (["codec", "decode", "question.wav", "d.wav"], AUDIO),
        (["codec", "decode", "none.safetensors", "d.wav"], AUDIO),
        (["codec", "decode", "wrong.safetensors", "d.wav"], AUDIO),
        (["codec", "decode", "high.safetensors", "d.wav"], AUDIO),
        (["codec", "roundtrip", "question.wav", "d.doc"], USAGE),
        (["trace", "--user-codes", "none.safetensors", "--out", "t.safetensors"], AUDIO),
        (["trace", "--user-codes", "wrong.safetensors", "--out", "t.safetensors"], AUDIO),
        (["trace", "--user-codes", "good.safetensors", "--out", "t.txt"], USAGE),
        (["trace", "--user-codes", "good.safetensors", "--out", "t.safetensors", "--prompt-tokens", "1,x"], USAGE),
        (["trace", "--user-codes", "good.safetensors", "--out", "t.safetensors", "--prompt-tokens", "1,999"], PERSONA),
        (["trace", "--user-codes", "good.safetensors", "--out", "t.safetensors", "--voice", "none.pt"], PERSONA),
        (["trace", "--user-codes", "good.safetensors", "--out", "t.safetensors", "--seed", "-1"], USAGE),
        (["trace", "--out", "t.safetensors"], USAGE),
    ],
)
def test_codec_and_trace(scene: Scene, arguments: list[str], code: int) -> None:
    mx.save_safetensors("wrong.safetensors", {"codes": mx.zeros((1, 7, 3), mx.int32)})
    mx.save_safetensors("high.safetensors", {"codes": mx.full((1, 8, 3), 2048, mx.int32)})
    mx.save_safetensors("good.safetensors", {"user_codes": mx.zeros((1, 8, 3), mx.int32)})
    before = scene._files()
    assert main([*arguments, "--model", str(scene.model)]) == code
    printed = scene.capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1, printed
    assert scene._files() == before


@pytest.mark.parametrize(
    "arguments", [["bench", "nothing"], ["nothing"], ["bench", "codec", "--frames", "0"], ["codec", "x"]]
)
def test_commands_that_do_not_exist(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1
