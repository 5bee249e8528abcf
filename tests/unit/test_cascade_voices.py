"""Piper, Kokoro and espeak-ng's wheel at work: the real libraries, on voices that were made a moment ago."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kokoro_onnx
import numpy as np
import pytest
from kokoro_onnx.config import DEFAULT_VOCAB
from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

from personaplex.cascade import mlx_voices
from personaplex.cascade.own_thread import OwnThread
from personaplex.cascade.registry import find_engine, open_synthesiser
from personaplex.errors import EngineError, SynthesisError, UsageError
from personaplex.speech import espeak, library
from tests.tiny_voices import KOKORO_RATE, PIPER_RATE, SYMBOL_SAMPLES, symbols, write_kokoro, write_piper


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()


def phonemes_of_piper(pcm: np.ndarray) -> str:
    """What was said, from sound that was made as loud as it can be: it begins with symbol 1."""
    levels = pcm[SYMBOL_SAMPLES // 2 :: SYMBOL_SAMPLES]
    names = {ids[0]: name for name, ids in DEFAULT_PHONEME_ID_MAP.items()}
    said = [names[round(float(level / levels[0]))] for level in levels]
    assert said[0] == "^" and said[-1] == "$"
    return "".join(name for name in said[1:-1] if name != "_")


def phonemes_of_kokoro(pcm: np.ndarray, loudness: float = 1.0) -> str:
    names = {number: name for name, number in DEFAULT_VOCAB.items()}
    return "".join(names[number] for number in symbols(pcm / loudness) if number)


def test_piper_says_each_sentence_as_espeak_reads_it(tmp_path: Path) -> None:
    path = write_piper(tmp_path)
    voice = open_synthesiser(f"piper:{path}")
    assert (voice.voices, voice.languages) == (("en_US-tiny-low",), ("en",))
    first, second = voice.say("Hello. It costs 5 dollars!", "en_US-tiny-low", "en")
    assert first.rate == second.rate == PIPER_RATE and first.pcm.dtype == np.float32
    assert phonemes_of_piper(first.pcm) == "həlˈoʊ."
    assert phonemes_of_piper(second.pcm) == "ɪt kˈɔsts fˈaɪv dˈɑːlɚz!"
    with pytest.raises(UsageError, match=r"unknown voice 'nobody'; there are en_US-tiny-low"):
        next(voice.say("a", "nobody"))
    with pytest.raises(UsageError, match="does not speak 'de'; it speaks en"):
        next(voice.say("a", None, "de"))
    voice.close()


def test_pipers_speakers_are_voices_its_own_first_one_first(tmp_path: Path) -> None:
    write_piper(tmp_path / "models", speakers=("anna", "bert"), default_speaker_id=1)
    voice = open_synthesiser("piper:en_US-tiny-low")  # by name, in the folder of models
    assert voice.voices == ("bert", "anna")
    (bert,), (anna,), (default,) = voice.say("a", "bert"), voice.say("a", "anna"), voice.say("a")
    assert np.array_equal(bert.pcm, -anna.pcm) and np.array_equal(default.pcm, bert.pcm)


def test_a_voice_of_piper_that_is_missing_or_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="piper needs a voice: piper:en_US-lessac-medium"):
        open_synthesiser("piper")
    with pytest.raises(
        EngineError, match=r"no file nothing\.onnx, here or in .*models; to get .* piper\.download_voices"
    ):
        open_synthesiser("piper:nothing")
    path = write_piper(tmp_path)
    about = Path(f"{path}.json")
    described = json.loads(about.read_text())
    for damaged in ("[]", "{", json.dumps(described | {"phoneme_type": "runes"})):
        about.write_text(damaged)
        with pytest.raises(EngineError, match="is not a voice of Piper that can be used"):
            open_synthesiser(f"piper:{path}")
    about.unlink()
    with pytest.raises(EngineError, match=r"needs .*\.onnx\.json beside it"):
        open_synthesiser(f"piper:{path}")
    about.write_text(json.dumps(described))
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="is not a voice of Piper that can be used"):
        open_synthesiser(f"piper:{path}")


def test_a_sentence_that_fails_in_the_runtime_does_not_end_the_voice(tmp_path: Path) -> None:
    """A symbol beyond the voice's table: ONNX Runtime refuses it."""
    path = write_piper(tmp_path, phoneme_id_map=DEFAULT_PHONEME_ID_MAP | {"θ": [999]})
    voice = open_synthesiser(f"piper:{path}")
    with pytest.raises(SynthesisError, match=r"piper cannot say .*I think so.*indices"):
        list(voice.say("I think so."))
    assert len(list(voice.say("I do."))) == 1


def test_kokoro_says_what_its_tokeniser_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_kokoro(tmp_path)
    voice = open_synthesiser(f"kokoro:{path}")
    assert (voice.voices, voice.languages) == (("af_heart", "bm_george", "ff_siwis"), ("en", "fr"))

    def said(*choice: str | None, loudness: float = 1.0) -> str:
        piece, pause = voice.say("Hello, car.", *choice)
        assert piece.rate == pause.rate == KOKORO_RATE and len(pause.pcm) == 6_000 and not pause.pcm.any()
        return phonemes_of_kokoro(piece.pcm, loudness)

    assert said() == said("af_heart", "en") == "həlˈoʊ, kˈɑːɹ."
    assert said("bm_george", loudness=0.5) == "həlˈəʊ, kˈɑː."
    assert said(None, "fr", loudness=0.25) == "ɛlˈo, kaʁ."
    assert said("af_heart", "fr") == "ɛlˈo, kaʁ.", "her voice, and the words of the other language"
    for choice, told in {
        ("zf_xiao", None): "unknown voice 'zf_xiao'",
        (None, "es"): "speaks 'es'; there are en, fr",
    }.items():
        with pytest.raises(UsageError, match=told):
            next(voice.say("a", *choice))
    with pytest.raises(SynthesisError, match=r"kokoro cannot say .*no phonemes"):
        list(voice.say("\u200b"))
    assert not caplog.records, "nothing for a person to read"
    voice.close()


def test_kokoro_streams_and_stops_when_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    infer = kokoro_onnx.Kokoro._infer

    def counted(self: Any, tokens: list[int], *options: Any) -> Any:
        made.append(len(tokens))
        return infer(self, tokens, *options)

    monkeypatch.setattr(kokoro_onnx.Kokoro, "_infer", counted)
    voice = open_synthesiser(f"kokoro:{write_kokoro(tmp_path)}")
    text = "The ship sailed on, and on, and on. " * 80
    pieces = voice.say(text)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    begun = len(made)
    assert begun <= 3, "one that was asked for, one that waits, one in progress"
    assert len(list(voice.say(text))) == len(made) - begun + 1 > 5
    assert max(made) <= 510


def test_kokoros_files_are_found_or_told(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no file kokoro-v1\.0\.onnx, here or in .*voices-v1\.0\.bin are among"):
        open_synthesiser("kokoro")
    path = write_kokoro(tmp_path / "models")
    open_synthesiser("kokoro").close()
    int8 = path.rename(path.with_name("kokoro-v1.0.int8.onnx"))
    (int8.with_name("voices-v2.bin")).write_bytes(b"")
    open_synthesiser("kokoro:kokoro-v1.0.int8").close()
    int8.with_name("voices-v1.0.bin").write_bytes(b"not voices")
    with pytest.raises(EngineError, match="cannot be used"):
        open_synthesiser("kokoro:kokoro-v1.0.int8")
    for voices in int8.parent.glob("voices*"):
        voices.unlink()
    with pytest.raises(EngineError, match=r"there should be voices-v1\.0\.bin; there is none"):
        open_synthesiser("kokoro:kokoro-v1.0.int8")


def test_gpl_parts_say_so() -> None:
    for name in ("piper", "kokoro", "espeak"):
        spec = find_engine("synthesiser", name)
        assert "GPL" in spec.licence and "when it is chosen" in spec.licence
        assert f"personaplex-mlx[{name}]" in spec.install


@pytest.fixture
def no_system_espeak(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    espeak._engine.cache_clear()
    monkeypatch.setattr(espeak, "load_espeak", lambda: library.load_espeak("libespeak-absent.so.9"))
    yield
    espeak._engine.cache_clear()


@pytest.mark.usefixtures("no_system_espeak")
def test_espeak_comes_from_the_wheel_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    (piece,) = open_synthesiser("espeak").say("Good day to you.", "en-gb-scotland")
    assert len(piece.pcm) > piece.rate // 2 and [word.text for word in piece.words] == ["Good", "day", "to", "you."]
    espeak._engine.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(EngineError, match=r"libespeak-absent.* apt-get install .*, or pip install '.*\[espeak\]'"):
        open_synthesiser("espeak")


def numbers(n: int, begun: list[str], ended: list[str]) -> Iterator[int]:
    begun.append(threading.current_thread().name)
    try:
        yield from range(n)
        raise SynthesisError("no more numbers")
    finally:
        ended.append(threading.current_thread().name)


@pytest.mark.parametrize("most", [0, 2])
def test_an_own_thread_makes_all_of_it_and_stops_when_nobody_asks(most: int) -> None:
    begun: list[str] = []
    ended: list[str] = []
    last: list[int] = []
    with OwnThread[int]("test", lambda: last.append(threading.get_ident())) as thread:
        heard = []
        with pytest.raises(SynthesisError, match="no more numbers"):
            for number in thread.stream(lambda: numbers(9, begun, ended), most):
                heard.append(number)
        assert heard == list(range(9)) and begun == ended == ["personaplex-test"]
        endless = thread.stream(lambda: numbers(10**9, begun, ended), most or 2)
        assert next(endless) == 0
        endless.close()  # type: ignore[attr-defined]
        assert len(ended) == 2, "it has ended when closing returns"
        own = thread.run(threading.get_ident)
        assert own != threading.get_ident() and not last
    assert last == [own] and "personaplex-test" not in {other.name for other in threading.enumerate()}
    thread.close()
    with pytest.raises(EngineError, match="was closed"):
        next(thread.stream(lambda: iter([1])))
    with pytest.raises(EngineError, match="was closed"):
        thread.run(threading.get_ident)


def test_what_is_no_exception_reaches_who_asked_an_own_thread_and_does_not_end_it() -> None:
    """As a panic in an engine's Rust code."""

    def panicking() -> Iterator[int]:
        yield 1
        raise SystemExit("panic")

    with OwnThread[int]("test") as thread:
        stream = thread.stream(panicking)
        assert next(stream) == 1
        with pytest.raises(SystemExit, match="panic"):
            next(stream)
        assert thread.run(lambda: "on") == "on"


def test_a_large_voice_that_cannot_be_used_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(config=SimpleNamespace(tts_model_type="voice_design"))
    monkeypatch.setattr(mlx_voices, "_load", lambda name: model)
    with pytest.raises(EngineError, match="makes voices from descriptions"):
        mlx_voices.QwenVoices("x")
    model.config.tts_model_type, model.tokenizer = "base", None
    with pytest.raises(EngineError, match="is not whole"):
        mlx_voices.QwenVoices("x")
    assert "personaplex-qwen3-tts" not in {thread.name for thread in threading.enumerate()}


def test_what_is_said_in_a_recorded_voice_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "voice.wav").touch()
    (tmp_path / "voice.txt").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"voice\.txt, what is said in the voice beside it, cannot be read as text"):
        mlx_voices._recorded(str(tmp_path / "voice.wav"), ())


def test_closing_an_own_thread_ends_what_is_still_being_made() -> None:
    """As many as asked for are made ahead and no more; who still listens is told that it was no end."""
    begun: list[str] = []
    ended: list[str] = []
    made: list[int] = []
    thread: OwnThread[int] = OwnThread("test")

    def counted() -> Iterator[int]:
        for number in numbers(10**9, begun, ended):
            made.append(number)
            yield number

    stream = thread.stream(counted, most=3)
    assert next(stream) == 0
    thread.close()
    assert ended == ["personaplex-test"] and len(made) <= 4
    with pytest.raises(EngineError, match="was closed"):
        list(stream)
