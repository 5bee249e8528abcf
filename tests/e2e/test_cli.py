"""The program as its users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from personaplex.audio import read_audio, write_audio
from personaplex.cli.main import main
from personaplex.text import PROMPTS
from tests.conftest import AUDIO, PARITY, Tensors, same

TINY = ["--model", str(PARITY)]
SPEAK = [*TINY, "--voice", "VOICE0", "--max-steps", "5"]


@pytest.fixture
def question(tmp_path: Path, speech: np.ndarray) -> Path:
    path = tmp_path / "question.wav"
    write_audio(path, speech)
    return path


@pytest.fixture
def word(tmp_path: Path, speech: np.ndarray) -> Path:
    """What is asked where only the agent's side matters: half a second."""
    path = tmp_path / "word.wav"
    write_audio(path, speech[:12_000])
    return path


def respond(*arguments: object) -> int:
    return main(["respond", *SPEAK, *map(str, arguments)])


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "personaplex", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_speech_in_speech_out(question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answer.wav"
    assert respond("-i", question, "-o", out, "--seed", 3) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and f"wrote {out}" in printed.err and "seed 3" in printed.err
    info = soundfile.info(out)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (24_000, 1, "PCM_16", 33 * 1920)


def test_a_persona_is_a_role_a_voice_and_a_way_to_choose(question: Path, word: Path, tmp_path: Path) -> None:
    """Each of which an option of its own overrules; without a name it is the assistant."""
    mine = tmp_path / "mine.toml"
    mine.write_text(
        '[pirate]\nprompt = "You are a pirate."\nvoices = ["NATM9", "VOICE0"]\nsampling = {greedy = true}\n'
    )
    persona, out = ["--persona", "pirate", "--personas", mine], tmp_path / "answer.wav"

    def said(*options: object) -> bytes:
        arguments = [*TINY, "--max-steps", 3, "--seed", 3, "-q", "-i", word, "-o", out, *options]
        assert main(["respond", *map(str, arguments)]) == 0
        return out.read_bytes()

    spelled = ["--system-prompt-text", "You are a pirate.", "--voice", "VOICE0", "--greedy"]
    assert said(*persona) == said(*spelled) != said()
    assert (
        said(*persona, "--system-prompt", "teacher") == said("--system-prompt", "teacher", "--greedy") != said(*spelled)
    )
    assert said(*persona, "--voice", question) == said(*spelled, "--voice", question) != said(*spelled)
    assert said("--persona", "assistant") == said() == said("--system-prompt", "assistant")


def test_json_is_all_there_is_on_stdout(question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answer.wav"
    assert respond("-i", question, "-o", out, "--seed", 3, "--json", "--verbose", "--stream") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(out) and report["seed"] == 3 and report["frames"] == 33
    assert report["output_seconds"] == pytest.approx(33 * 0.08) and len(report["tokens"]) == 33
    assert 0 < report["step_ms_p50"] <= report["step_ms_p99"] and report["rtf"] > 0
    assert isinstance(report["text"], str)


def test_the_same_seed_writes_the_same_file(word: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        assert respond("-i", word, "-o", tmp_path / name, "--seed", 9, "--quiet") == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_transcript_and_quiet(question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert respond("-i", question, "-o", tmp_path / "a.wav", "--seed", 3, "--transcript", "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.strip()


def test_streamed_text_comes_in_pieces(question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert respond("-i", question, "-o", tmp_path / "a.wav", "--stream", "--chunk-frames", 10) == 0
    assert [line[:9] for line in capsys.readouterr().err.splitlines()[:4]] == [
        "[  0.00 s",
        "[  0.80 s",
        "[  1.60 s",
        "[  2.40 s",
    ]


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["respond", *TINY, "--list-voices"]) == 0
    assert capsys.readouterr().out == "VOICE0\n"
    assert main(["respond", "--list-prompts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == PROMPTS


def test_roles_from_presets_files_and_words(word: Path, tmp_path: Path) -> None:
    role = tmp_path / "role.txt"
    role.write_text(PROMPTS["teacher"] + "\n")
    heard = []
    for choice in (
        ["--system-prompt", "teacher"],
        ["--system-prompt", role],
        ["--system-prompt-text", PROMPTS["teacher"]],
        ["--system-prompt-text", ""],
    ):
        assert respond("-i", word, "-o", tmp_path / "a.wav", "--greedy", "--quiet", *choice) == 0
        heard.append((tmp_path / "a.wav").read_bytes())
    assert heard[0] == heard[1] == heard[2] != heard[3]


def test_pipes(word: Path, tmp_path: Path) -> None:
    """Standard input and output, whole and streamed, give the same samples as files."""
    out = tmp_path / "a.wav"
    assert respond("-i", word, "-o", out, "--seed", 4, "--quiet") == 0
    for more in ([], ["--stream"]):
        piped = run("respond", *SPEAK, "-i", "-", "-o", "-", "--seed", 4, "--quiet", *more, input=word.read_bytes())
        assert (piped.returncode, piped.stderr) == (0, b"")
        samples = np.frombuffer(piped.stdout[44:], "<i2")
        stored, _ = soundfile.read(out, dtype="int16")
        assert np.array_equal(samples, stored)
        (tmp_path / "piped.wav").write_bytes(piped.stdout)
        assert len(read_audio(tmp_path / "piped.wav")) == len(stored)


def test_a_reader_that_goes_away_is_no_accident(question: Path, tmp_path: Path) -> None:
    program = f"'{sys.executable}' -m personaplex respond"
    speak = f"{program} {' '.join(SPEAK)} -q -i '{question}' -o - --stream --chunk-frames 2"
    for command in (f"{program} --list-prompts | true", f"{speak} | head -c 100 >/dev/null"):
        line = f"{command}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, b""), command


def test_the_program_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr()
    assert "Commands:\n  respond" in printed.out + printed.err


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000 * 120).astype(np.float32)
    write_audio(tmp_path / "long.wav", noise)
    command = [sys.executable, "-m", "personaplex", "respond", *SPEAK, "-i", "long.wav", "--stream", "-o", "out.wav"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stderr is not None
    first = child.stderr.readline()  # the first chunk: it is in the middle of its work
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=60)
    assert child.returncode == 130, rest
    assert b"Traceback" not in rest and rest.splitlines()[-1] == b"personaplex: interrupted; no file was written"
    assert first.startswith(b"[") and sorted(p.name for p in tmp_path.iterdir()) == ["long.wav"]


def test_real_speech_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not AUDIO.is_dir():
        pytest.skip(f"the recordings are not in {AUDIO}")
    out = tmp_path / "answer.wav"
    source = AUDIO / "input_service.wav"
    assert respond("-i", source, "-o", out, "--json", "--system-prompt", AUDIO / "prompt_service.txt") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["input_seconds"] == 20 and report["frames"] == 255 and out.stat().st_size == 44 + 2 * 255 * 1920


TRACES = {
    "audio": ["--voice", "codes.safetensors", "--prompt-tokens"],
    "embeddings": ["--voice", str(PARITY / "voices" / "VOICE0.pt"), "--prompt-tokens"],
    "noprompt": [],
}


@pytest.mark.parametrize("mode", TRACES)
@pytest.mark.parametrize("timing", ["ours", "reference"])
def test_trace_is_the_reference(
    mode: str, timing: str, tmp_path: Path, expected: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mx.save_safetensors("user.safetensors", {"user_codes": expected["gen.user_codes"]})
    voice = expected["gen.voice_prompt_codes"].T[None].astype(mx.int32)
    mx.save_safetensors("codes.safetensors", {"codes": voice})
    tokens = ",".join(map(str, np.array(expected["gen.text_prompt_tokens"]).tolist()))
    prompt = [*TRACES[mode], tokens] if TRACES[mode] else []
    arguments = [*TINY, *prompt, "--user-codes", "user.safetensors", "--greedy", "--out", "t.safetensors"]
    assert main(["trace", *arguments, "--dtype", "float32", "--timing", timing]) == 0
    found, reference = mx.load("t.safetensors"), expected[f"gen.{mode}.out"]
    assert isinstance(found, dict)
    assert found["out"].dtype == mx.int32 and found["out"].shape == (1, 17, 40)
    assert found["text_logits"].shape == (40, 320) and found["audio_logits"].shape == (40, 8, 2048)
    assert found["offset_after_prompt"].item() == expected[f"gen.{mode}.offset_after_prompt"].item()
    if timing == "ours":
        assert same(found["out"][:, :, :-1], reference[:, :, 1:])
    else:
        assert same(found["out"], reference)


def test_codec_to_tokens_and_back(
    question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], speech: np.ndarray
) -> None:
    codes, decoded, direct = tmp_path / "c.safetensors", tmp_path / "d.wav", tmp_path / "r.wav"
    assert main(["codec", "encode", *TINY, str(question), str(codes), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encode_ms_per_frame"] > 0
    stored = mx.load(str(codes))
    assert isinstance(stored, dict)
    assert stored["codes"].shape == (1, 8, 28) and stored["codes"].dtype == mx.int32
    assert main(["codec", "decode", *TINY, str(codes), str(decoded)]) == 0
    assert "decode ms per frame" in capsys.readouterr().err
    assert main(["codec", "roundtrip", *TINY, str(question), str(direct), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rtf"] > 0
    found = read_audio(direct)
    assert len(found) == len(speech) and np.array_equal(found, read_audio(decoded)[: len(found)])


def test_snr() -> None:
    from personaplex.evaluate.codec.measures import snr_db

    signal_ = np.sin(np.arange(1000) / 7).astype(np.float32)
    assert snr_db(signal_, signal_ * 0.9) == pytest.approx(20, abs=1e-3)
    assert snr_db(signal_, signal_) == float("inf") and snr_db(0 * signal_, signal_) == float("-inf")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_bench_ends_with_one_json_object(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", *TINY, "--frames", "3", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 if flags else "Mimi, one 80 ms frame at a time" in lines[0]
    report = json.loads(lines[-1])
    assert set(report) == {"bench", "machine", "mlx", "commit", "possible", "rows"} and report["machine"]["cores"] >= 1
    assert [row["name"] for row in report["rows"]] == [
        "encoder", "quantiser", "decoder", "round trip", "round trip, compiled"
    ]  # fmt: skip
    assert all(0 < r["p50_ms"] <= r["p95_ms"] <= r["p99_ms"] <= r["max_ms"] for r in report["rows"])


def test_help_answers_without_loading_mlx() -> None:
    code = "import sys; from personaplex.cli.main import main; main(['--help']); print('mlx.core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False" and "respond" in done.stdout


def test_a_progress_bar_only_on_a_terminal(word: Path, tmp_path: Path) -> None:
    import pty

    arguments = ["respond", *SPEAK, "-i", str(word), "-o", str(tmp_path / "a.wav")]
    main_end, other_end = pty.openpty()
    command = [sys.executable, "-m", "personaplex", *arguments]
    child = subprocess.Popen(command, stderr=other_end, stdout=subprocess.PIPE)
    os.close(other_end)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            piece = os.read(main_end, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    out, _ = child.communicate(timeout=60)
    os.close(main_end)
    assert child.returncode == 0 and out == b"" and b"responding" in shown and b"100%" in shown
    assert b"responding" not in run(*arguments).stderr


@pytest.mark.parametrize("compiled", [True, False])
def test_bench_load_times_the_step_compiled_or_not(compiled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--compile" if compiled else "--no-compile"
    assert main(["bench", "load", *TINY, "--frames", "2", "--json", flag]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["first frame"]["compiled"] == rows["frame"]["compiled"] == compiled
    assert main(["bench", "codec", *TINY, flag]) == 2


def test_interrupted_while_importing(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "personaplex", "--help"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "flags", [["--seed", "-1"], ["--text-temp", "-1"], ["--audio-top-k", "-3"], ["--repetition-penalty", "99"]]
)
def test_sampling_is_checked_before_anything_is_loaded(
    flags: list[str], question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model named here does not exist, and nobody has noticed yet."""
    nowhere = ["--model", str(tmp_path / "nowhere")]
    assert main(["respond", *nowhere, "-i", str(question), "-o", str(tmp_path / "out.wav"), *flags]) == 2
    codes = ["--user-codes", "none.safetensors", "--out", str(tmp_path / "out.safetensors")]
    assert main(["trace", *nowhere, *codes, *flags]) == 2
    assert "must be" in capsys.readouterr().err
