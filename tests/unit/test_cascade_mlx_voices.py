"""Qwen3-TTS and CosyVoice: the real packages, in the environments that `scripts/engines-venv` makes for them.

Qwen3-TTS runs whole, with a few kB of random weights. CosyVoice's calls are checked against its real signatures.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from personaplex.cascade.registry import find_engine, open_synthesiser
from personaplex.errors import EngineError

ROOT = Path(__file__).parents[2]
ENGINES = ROOT / ".venv-engines"


def report(folder: Path, name: str, *path: Path) -> Any:
    """What `tests/mlx_voices.py` prints: one JSON object, whatever the packages print."""
    paths = os.pathsep.join(str(part) for part in (*path, ROOT / "src", ROOT))
    command = [str(ENGINES / "bin" / "python"), "-m", "tests.mlx_voices", name, str(folder)]
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_qwen_speaks_half_a_second_at_a_time_in_a_thread_of_its_own(tmp_path: Path) -> None:
    found = report(tmp_path, "qwen")
    assert (found["voices"], found["languages"]) == (["anna", "bert"], ["en", "de"])
    assert [piece[0] for piece in found["pieces"]] == [11_520, 11_520, 11_520, 3_840]
    assert all(piece[1:] == [24_000, "float32", True] for piece in found["pieces"])
    assert found["again"] == found["cloned"] == 20 * 1920
    assert found["threads"] == ["personaplex-qwen3-tts"]
    assert "unknown voice 'nobody': no such recording; there are anna, bert" in found["unknown voice"]
    assert "does not speak 'fr'; it speaks en, de" in found["unknown language"]
    assert "EngineError: qwen3-tts cannot load" in found["nowhere"] and "nowhere" in found["nowhere"]
    assert "choose a CustomVoice or a Base model" in found["design"]
    assert "EngineError" in found["broken"] and "is not whole" in found["broken"]


def test_every_call_of_cosyvoice_is_one_that_the_package_has(tmp_path: Path) -> None:
    found = report(tmp_path, "cosyvoice", ENGINES / "cosyvoice")
    (asked,) = found["asked"]
    assert asked["text"] == "Good day." and asked["ref_audio"] == [48_000]
    assert asked["ref_text"] == "what is said in it" and asked["stt_model"] == "None", "no other model is downloaded"
    assert found["piece"] == [99, 24_000, "float32"]
    assert "UsageError: cosyvoice has no voices of its own" in found["no voice"]
    assert "does not speak 'xx'" in found["unknown language"] and "no such recording" in found["unknown voice"]
    assert "EngineError: cosyvoice cannot load" in found["nowhere"]


@pytest.mark.parametrize("name", ["qwen3-tts", "cosyvoice", "personaplex"])
def test_what_was_not_run_with_real_weights_says_so(name: str) -> None:
    spec = find_engine("synthesiser", name)
    assert "not run with real weights" in spec.remark


def test_a_package_without_the_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-audio has no CosyVoice, and mlx-audio-plus no Qwen3-TTS."""
    (tmp_path / "mlx_audio" / "tts" / "models" / "qwen3_tts").mkdir(parents=True)
    (tmp_path / "mlx_audio" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_engine("synthesiser", "qwen3-tts").missing() is None
    with pytest.raises(EngineError, match=r"has no cosyvoice3; to install it: pip install 'mlx-audio-plus"):
        open_synthesiser("cosyvoice")
