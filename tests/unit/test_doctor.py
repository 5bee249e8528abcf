"""Every check of `personaplex doctor`: what it finds where all is well, and what it says of each thing that is not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import av
import mlx.core as mx
import pytest
from huggingface_hub import constants

from personaplex import doctor
from personaplex.accelerator import HOW_TO_GET_ONE, Blas
from personaplex.checkpoint import repository
from personaplex.checkpoint.folder import ModelFolder
from personaplex.checkpoint.recipe import quantization
from personaplex.cli.main import main
from personaplex.config import LMConfig, ModelConfig
from personaplex.doctor import THE_7B, Check
from personaplex.runtime import memory
from personaplex.runtime.limits import Limits
from tests.hub_server import Hub, Repo, ask, running
from tests.unit.test_sound_card import Cards

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, no token, and nobody asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(repository, "getproxies", dict)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running({THE_7B: Repo({}, token="hf_accepted")}) as served:
        ask(monkeypatch, served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield served


def on(monkeypatch: pytest.MonkeyPatch, device: mx.DeviceType) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))


def test_mlx_works_here() -> None:
    found = doctor.check_mlx()
    assert found.verdict == "ok" and found.found.startswith(f"{version('mlx')} on the ")


@pytest.mark.parametrize("missing", ["mlx", "mlx.core"])
def test_without_mlx_it_still_answers_and_ends_with_its_code(missing: str, tmp_path: Path) -> None:
    """In a process of its own, where MLX cannot be imported."""
    begin = f"import sys; sys.modules[{missing!r}] = None"
    code = f"{begin}; from personaplex.cli.main import main; sys.exit(main(['doctor', '--json']))"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 7, done.stderr
    report = json.loads(done.stdout)
    verdicts = {check["name"]: check for check in report["checks"]}
    assert not report["ok"] and report["exit_code"] == 7 and len(verdicts) == len(doctor.CHECKS)
    assert verdicts["mlx"]["verdict"] == "problem" and "pip install 'personaplex-mlx" in verdicts["mlx"]["mend"]


def test_mlx_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> mx.array:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(mx, "ones", broken)
    found = doctor.check_mlx()
    assert (found.verdict, found.exit_code) == ("problem", 7) and "no kernel image" in found.found


def test_a_slow_blas_is_a_warning_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSONAPLEX_BLAS", raising=False)
    monkeypatch.setattr(doctor, "blas", Blas(None, HOW_TO_GET_ONE))
    assert doctor.check_blas() == Check("blas", "warning", "MLX's own, which is slow", HOW_TO_GET_ONE)
    monkeypatch.setattr(doctor, "blas", Blas("libopenblas.so.0"))
    assert doctor.check_blas() == Check("blas", "ok", "libopenblas.so.0")
    monkeypatch.setenv("PERSONAPLEX_BLAS", "none")
    assert doctor.check_blas().mend == "unset PERSONAPLEX_BLAS"


@pytest.mark.parametrize(
    ("device", "gib", "verdict", "says", "mend"),
    [
        (mx.gpu, 64, "ok", "the 7B fits (18.0", None),
        (mx.gpu, 14, "warning", "the 7B fits as `--bits 8` makes it", "--bits 8"),
        (mx.gpu, 10, "warning", "the 7B fits as `--bits mixed` makes it", "--out personaplex-mixed --bits mixed"),
        (mx.gpu, 4, "warning", "the 7B needs 8.3 GiB", "--model nano"),
        (mx.cpu, 64, "ok", "the 7B fits (35.6 GiB with one conversation)", None),
        (mx.cpu, 16, "warning", "the 7B needs 35.6 GiB", "--model nano"),
        (mx.cpu, 0.5, "warning", "0.5 GiB are free; the 7B needs", "--model nano"),
        (mx.cpu, 0.05, "problem", "0.0 GiB are free", "close other programs: nano needs 0.1 GiB"),
    ],
)
def test_memory(
    monkeypatch: pytest.MonkeyPatch, device: mx.DeviceType, gib: float, verdict: str, says: str, mend: str | None
) -> None:
    on(monkeypatch, device)
    monkeypatch.setattr(memory, "available_bytes", lambda: int(gib * 2**30))
    found = doctor.check_memory()
    assert found.verdict == verdict and says in found.found, found
    assert found.mend == mend if mend is None else mend in (found.mend or "")
    assert found.exit_code == (7 if verdict == "problem" else 0)


@pytest.mark.parametrize("bits", ["8", "mixed", "4"])
def test_what_fits_is_what_its_command_makes(bits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte: heads and embeddings stay 16 bits unless somebody asks, which is half a GiB of the 7B at 4."""
    on(monkeypatch, mx.gpu)
    config = ModelConfig(quantization=quantization(bits, LMConfig()))
    (tmp_path / "config.json").write_text(config.to_json())
    needed = memory.plan(ModelFolder(tmp_path), 1, Limits()).total
    for available, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(memory, "available_bytes", lambda available=available: available)
        assert (f"--bits {bits}" in (doctor.check_memory().mend or "")) == fits


def test_memory_that_nobody_tells_is_no_reason_to_worry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert doctor.check_memory().verdict == "ok"


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 10 * 2**30))
    found = doctor.check_disk()
    assert found.verdict == "warning" and "10.0 GiB are free" in found.found and "the 7B takes 16.0 GiB" in found.found
    assert "HF_HOME" in (found.mend or "")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 20 * 2**30))
    assert doctor.check_disk().verdict == "ok"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "/here")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, 0))
    assert doctor.check_disk().verdict == "ok" and "the 7B is there" in doctor.check_disk().found


def test_microphone_and_speaker(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards()
    monkeypatch.setitem(sys.modules, "sounddevice", cards)
    assert doctor.check_microphone() == Check("microphone", "ok", "mic")
    assert doctor.check_speaker() == Check("speaker", "ok", "ear")
    del cards.devices[0]
    assert doctor.check_microphone().found == "no microphone was found" and doctor.check_speaker().verdict == "ok"
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "personaplex-mlx[talk]" in (doctor.check_speaker().mend or "")


def test_without_portaudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    found = doctor.check_microphone()
    assert found.verdict == "warning" and "libportaudio2" in (found.mend or "")


def test_the_cascade(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.check_cascade()
    assert found.verdict == "ok" and "pocketsphinx hears, flite speaks" in found.found
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    assert doctor.check_cascade() == Check(
        "cascade",
        "warning",
        "the recogniser pocketsphinx cannot be used: pocketsphinx is not installed",
        "pip install pocketsphinx",
    )


def test_opus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_opus().verdict == "ok"

    def none(*_: object) -> None:
        raise av.codec.codec.UnknownCodecError("libopus")

    monkeypatch.setattr(av.codec, "Codec", none)
    assert doctor.check_opus() == Check(
        "opus", "warning", "PyAV here cannot read and write Opus", "pip install --force-reinstall av"
    )


def test_offline_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*arguments: object, **_: object) -> None:
        pytest.fail(f"it asked the network: {arguments}")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, asked)
    monkeypatch.setattr(socket.socket, "connect", asked)
    assert main(["doctor"]) in (0, 7)
    assert "ok       hub         HF_HUB_OFFLINE is set: nobody is asked" in capsys.readouterr().out


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    found = doctor.check_hub()
    assert found.verdict == "warning" and "127.0.0.1:9 does not answer" in found.found
    assert "HF_HUB_OFFLINE" in (found.mend or "")


@pytest.mark.parametrize(
    ("token", "verdict", "says"),
    [
        (None, "warning", "there is no token"),
        ("hf_stranger", "warning", "may not read"),
        ("hf_accepted", "ok", "may read"),
    ],
)
def test_access_to_the_gated_model(
    hub: Hub, token: str | None, verdict: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    found = doctor.check_hub()
    assert found.verdict == verdict and says in found.found
    accept = f"accept the licence at {hub.url}/{THE_7B}, then run `hf auth login`"
    assert found.mend == (None if verdict == "ok" else accept)


@pytest.mark.parametrize(
    ("card", "build", "verdict", "mend"),
    [
        (None, "mlx-cpu", "ok", None),
        (None, "mlx-cuda-13", "warning", "driver 580 or newer"),
        (("NVIDIA L4", 590), "mlx-cuda-13", "ok", None),
        (("NVIDIA L4", 560), "mlx-cuda-12", "ok", None),
        (("NVIDIA L4", 590), "mlx-cpu", "warning", "personaplex-mlx[cuda13]"),
        (("NVIDIA L4", 560), "mlx-cpu", "warning", "personaplex-mlx[cuda12]"),
        (("NVIDIA L4", 560), "mlx-cuda-13", "warning", "personaplex-mlx[cuda12]"),
        (("NVIDIA L4", 470), "mlx-cuda-12", "warning", "driver 550 or newer"),
        (("NVIDIA L4", 470), "mlx-cpu", "warning", "driver 550 or newer"),
    ],
)
def test_the_graphics_card_and_its_driver(
    monkeypatch: pytest.MonkeyPatch, card: tuple[str, int] | None, build: str, verdict: str, mend: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor, "nvidia_card", lambda: card)
    monkeypatch.setattr(doctor, "_backend", lambda: f"{build} 0.32.4")
    found = doctor.check_gpu()
    assert found.verdict == verdict and found.exit_code == 0
    assert found.mend == mend if mend is None else mend in (found.mend or "")


def test_the_card_is_what_its_own_program_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.nvidia_card() is None
    for says, card in (("NVIDIA H200, 580.95.05", ("NVIDIA H200", 580)), ("No devices were found", None)):
        program.write_text(f"#!/bin/sh\necho '{says}'\n")
        program.chmod(0o755)
        assert doctor.nvidia_card() == card
    program.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.nvidia_card() is None


def test_the_first_problem_decides_how_it_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        Check("a", "ok", "fine"), Check("b", "warning", "slow", "do this"), Check("c", "problem", "gone", "do that", 7),
        Check("d", "problem", "gone too", "do both", 4),
    ]  # fmt: skip
    monkeypatch.setattr(doctor, "CHECKS", {check.name: lambda check=check: check for check in checks})
    assert main(["doctor"]) == 7
    assert "problem  c           gone\n                     -> do that\n" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 7
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["exit_code"], len(report["checks"])) == (False, 7, 4)
    monkeypatch.setattr(doctor, "CHECKS", {"a": lambda: checks[0], "b": lambda: checks[1]})
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
