"""verify: its checks on hand-made exhibits, what must fail them, and all of it with the tiny model."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex
from personaplex.audio import read_audio
from personaplex.cli.kept_answers import KeptAnswers
from personaplex.cli.main import main
from personaplex.conversation import Settings
from personaplex.errors import ConversationError, EngineError, OutputError
from personaplex.evaluate.hearing import GRAMMAR, Ear, EngineEar, GrammarEar, open_ear
from personaplex.evaluate.prompts.asking import Answer, Asked, ask
from personaplex.evaluate.prompts.expectation import Expectation
from personaplex.evaluate.prompts.questions import Question
from personaplex.evaluate.result import Result
from personaplex.evaluate.verification import verification
from personaplex.evaluate.verification.agreement import Offline, agreement, run_offline
from personaplex.evaluate.verification.broken import break_model
from personaplex.evaluate.verification.checks import CHECKS, Exhibit, Limits, judge
from personaplex.evaluate.verification.controls import exchanged, loop_of_codes, loop_of_words, spoilt
from personaplex.evaluate.verification.verification import AGREES, troubles, verify
from personaplex.model import DEFAULT_PROMPT
from personaplex.report.recorded import Said
from personaplex.report.sources import Sources
from personaplex.runtime.engine import Engine
from personaplex.runtime.limits import Limits as EngineLimits
from personaplex.speech import AGENTS, say
from personaplex.units import FRAME_SAMPLES
from tests.conftest import PARITY

ROOT = Path(__file__).parents[2]
SEVEN = Question("opens", say="when", expectation=Expectation((("seven",),)), waits=False, listen_seconds=0.4)
NINE = replace(SEVEN, name="closes", expectation=Expectation((("nine",),)))
LIMITS = Limits()


class FakeEar:
    """Hears what it is told to hear in whatever is not silent; nothing in silence."""

    name = "fake"

    def __init__(self, text: str, in_silence: str = "") -> None:
        self.text, self.in_silence = text, in_silence

    def hear(self, pcm: np.ndarray) -> str:
        return self.text if pcm.any() else self.in_silence

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_audio(ROOT / "examples" / "question.wav")


def failed(exhibit: Exhibit, question: Question = SEVEN, limits: Limits = LIMITS) -> set[str]:
    return {name for name, finding in judge(exhibit, question.expectation, limits).items() if not finding.passed}


def test_an_answer_passes_every_check(speech: np.ndarray) -> None:
    exhibit = Exhibit(speech, "We open at seven.", "we open at 7")
    assert set(judge(exhibit, SEVEN.expectation, LIMITS)) == set(CHECKS)
    assert failed(exhibit) == set()


@pytest.mark.parametrize(
    ("text", "heard", "checks"),
    [
        ("we open at seven", "we open at nine", {"heard"}),
        ("we open at nine", "we open at nine", {"words", "heard"}),
        ("we open at seven", "seven cats are grey", {"errors"}),
        ("at seven", "at seven", {"answers"}),
        ("we open at seven", "", {"heard", "errors", "overlap"}),
        ("", "", {"answers", "words", "heard", "errors", "overlap"}),
        ("we open at seven", "we are open until half past seven at night", {"errors"}),
        ("seven seven seven seven", "seven seven seven seven", {"loops"}),
        ("we open at seventeen", "we open at seven", {"words"}),
    ],
)
def test_each_check_fails_on_its_own(speech: np.ndarray, text: str, heard: str, checks: set[str]) -> None:
    assert failed(Exhibit(speech, text, heard)) == checks


def test_limits_are_the_callers(speech: np.ndarray) -> None:
    exhibit = Exhibit(speech, "at seven", "at seventy")
    assert failed(exhibit, limits=Limits(words=2, errors=0.4)) == {"heard", "errors"}


def test_without_expected_words_none_are_checked(speech: np.ndarray) -> None:
    assert set(judge(Exhibit(speech, "a b c", "a b c"), Expectation(), LIMITS)) == set(CHECKS) - {"words", "heard"}


def test_what_is_put_in_an_answers_place_fails(speech: np.ndarray) -> None:
    codes = np.arange(8 * (len(speech) // FRAME_SAMPLES)).reshape(8, -1)
    exhibit = Exhibit(speech, "we open at seven", "we open at seven", codes)
    assert failed(exhibit) == set()
    names = []
    for unheard in spoilt(exhibit, SEVEN):
        control = unheard.heard_by(FakeEar("mumble mumble"))
        names.append(control.name)
        assert control.must_fail and failed(control.exhibit) >= set(control.must_fail), control.name
    assert names == ["silence", "no answer", "noise", "tone", "loop of words", "loop of codes"]
    unknown = replace(exhibit, codes=None)
    assert "loop of codes" not in [control.name for control in spoilt(unknown, SEVEN)], "it could fail nothing"


def test_each_loop_shows_alone(speech: np.ndarray) -> None:
    """A check that saw only words, or only codes, would let the other loop pass."""
    codes = np.arange(8 * (len(speech) // FRAME_SAMPLES)).reshape(8, -1)
    going_round = Exhibit(speech, "seven " * 8, "", np.tile(codes[:, :6], 40)[:, : codes.shape[1]])
    words = judge(loop_of_words(going_round), Expectation(), LIMITS)["loops"].reason
    assert "a phrase 8 times" in words and "code" not in words
    looped = judge(loop_of_codes(going_round), Expectation(), LIMITS)["loops"].reason
    assert "codes in a loop" in looped and "phrase" not in looped
    assert (
        "a phrase 8 times"
        in judge(loop_of_words(replace(going_round, text="!")), Expectation(), LIMITS)["loops"].reason
    )


def test_answers_are_exchanged_only_between_questions_that_want_other_words(speech: np.ndarray) -> None:
    exhibits = [Exhibit(speech, text, text) for text in ("at seven", "we open at seven", "we close at nine")]
    controls = list(exchanged(exhibits, [SEVEN, SEVEN, NINE]))
    assert [(c.name, c.of, c.exhibit.heard) for c in controls] == [
        ("another answer", "opens", "we close at nine"),
        ("another answer's sound", "opens", "we close at nine"),
        ("another answer", "opens", "we close at nine"),
        ("another answer's sound", "opens", "we close at nine"),
        ("another answer", "closes", "at seven"),
        ("another answer's sound", "closes", "at seven"),
    ]
    assert controls[1].exhibit.text == "at seven"
    assert list(exchanged(exhibits[:2], [SEVEN, SEVEN])) == []


def sound(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, 6 * FRAME_SAMPLES).astype(np.float32)


def asked() -> list[Asked]:
    def start(seed: int) -> Settings:
        return Settings(seed=seed)

    return [Asked(SEVEN, sound(1), start, [1]), Asked(NINE, sound(2), start, [1])]


def tiny() -> PersonaPlex:
    return PersonaPlex.from_pretrained(PARITY, dtype=mx.float32, compiled=False)


@pytest.fixture(scope="module")
def answers(model: PersonaPlex) -> Iterator[list[Answer]]:
    with Engine(model, 2, limits=EngineLimits(pinned_frames=0)) as engine:
        yield [ask(engine, each.question, each.pcm, each.settings(1), 1) for each in asked()]


def test_engine_and_library_agree_and_nothing_else_does(model: PersonaPlex, answers: list[Answer]) -> None:
    one, other = answers
    offline = run_offline(model, one, Settings())
    assert agreement(offline, one) == (True, "")
    assert not agreement(offline, other).passed
    moved = one.agent.copy()
    moved[5 * FRAME_SAMPLES + 7] += 0.01
    assert agreement(offline, replace(one, agent=moved)).reason == (
        "sound (respond, live engine) differ from frame 5 on"
    )
    tokens = offline.realtime.copy()
    tokens[3, 4] += 1
    assert agreement(replace(offline, realtime=tokens), one).reason == (
        "tokens (respond, respond_realtime) differ from frame 4 on"
    )
    tokens = offline.realtime.copy()
    tokens[12, 4] += 1  # the user's side is no part of what is said
    assert agreement(replace(offline, realtime=tokens), one).passed
    cut = replace(one, agent=one.agent[:-FRAME_SAMPLES])
    n_frames = len(one.agent) // FRAME_SAMPLES
    assert agreement(offline, cut).reason == f"sound (respond, live engine) differ from frame {n_frames - 1} on"
    assert "text (respond, live engine)" in agreement(offline, replace(one, text=((0, "other"),))).reason
    assert not agreement(offline, replace(one, agent=np.full_like(one.agent, np.nan))).passed


def test_on_a_gpu_engine_and_library_must_both_be_right_and_the_librarys_ways_the_same(
    model: PersonaPlex, answers: list[Answer]
) -> None:
    offline = replace(run_offline(model, answers[0], Settings()), text=((0, "at seven"),))
    rounded = replace(answers[0], agent=-answers[0].agent, text=((0, "we open at seven"),))
    assert not agreement(offline, rounded, exact=True).passed
    assert agreement(offline, rounded, exact=False).passed
    assert not agreement(offline, replace(rounded, text=((0, "at nine"),)), exact=False).passed
    assert not agreement(replace(offline, text=((0, "at nine"),)), rounded, exact=False).passed
    assert not agreement(replace(offline, realtime=offline.realtime + 1), rounded, exact=False).passed
    wordless = replace(rounded, question=replace(SEVEN, expectation=Expectation()))
    assert agreement(offline, wordless, exact=False).passed, "two words of four differ"
    assert not agreement(offline, wordless, exact=True).passed
    for text in ("we will open at seven", "at nine tonight", ""):
        assert not agreement(offline, replace(wordless, text=((0, text),)), exact=False).passed, text
    silent = replace(offline, text=())
    assert not agreement(silent, replace(wordless, text=()), exact=False).passed, "nothing said is no answer"


def test_chunks_are_the_reply(model: PersonaPlex, answers: list[Answer]) -> None:
    offline = run_offline(model, answers[0], Settings())
    sound, text = offline.chunks
    assert "chunks) differ from frame 0" in agreement(replace(offline, chunks=(-sound, text)), answers[0]).reason
    assert "its chunks): " in agreement(replace(offline, chunks=(sound, "other")), answers[0]).reason


def test_another_seed_does_not_agree(model: PersonaPlex, answers: list[Answer]) -> None:
    assert not agreement(run_offline(model, replace(answers[0], seed=2), Settings()), answers[0]).passed


def test_sampling_of_the_conversation_is_the_librarys_too(model: PersonaPlex) -> None:
    each = asked()[0]
    hot = Settings(seed=1, sampling={"text_temperature": 1.3, "audio_top_k": 5})
    with Engine(model, 1, limits=EngineLimits(pinned_frames=0)) as engine:
        answer = ask(engine, each.question, each.pcm, hot, 1)
    assert agreement(run_offline(model, answer, hot), answer).passed
    assert not agreement(run_offline(model, answer, Settings()), answer).passed


def test_a_broken_model_has_the_same_numbers_elsewhere() -> None:
    model = tiny()
    before = np.array(model.lm.text_head.weight)
    broken = break_model(model)
    after = np.array(broken.lm.text_head.weight)
    assert not np.array_equal(before, after)
    assert np.array_equal(np.sort(before, axis=0), np.sort(after, axis=0))


def run(ear: Ear) -> Result:
    return verify(tiny(), asked(), ear, {"seed": 1}, slots=2)


@pytest.fixture(scope="module")
def result() -> Result:
    return run(FakeEar("mumble"))


def test_a_model_that_says_nonsense_fails_in_words(result: Result) -> None:
    found = troubles(result)
    assert "words: its text holds the expected words: 0% of 2 (75% expected)" in found
    assert not any("control" in trouble for trouble in found)
    by_name = {row.what.split(":")[0]: row for row in result.rows}
    assert result.about["passed"] is False and result.about["reasons"] == found and result.about["seed"] == 1
    assert by_name[AGREES].value == 1 and by_name[AGREES].goal == 1
    assert by_name["heard"].goal == 0.75 and not by_name["heard"].met


def test_every_check_was_tried_on_what_must_fail_it(result: Result) -> None:
    rows = {row.what: row for row in result.rows if row.at_most}
    tried = {what.removeprefix("what must fail ").split(":")[0]: what for what in rows}
    assert set(tried) == {*CHECKS, AGREES}
    assert all(row.n and row.value == 0 for row in rows.values())
    assert "another answer, " in tried["heard"] and "broken model" in tried[AGREES]
    controls = {item["control"] for item in result.items if "control" in item}
    judged = [item for item in result.items if "question" in item]
    assert len({item["item"] for item in judged}) == len(judged)
    in_pairs = {row.what: row for row in result.rows if row.what in judged[0]["values"]}
    assert len(in_pairs) == 9
    for what, row in in_pairs.items():
        added = [value for item in judged for value in item["values"][what]]
        assert (float(np.mean(added)), len(added)) == (row.value, row.n), "a comparison in pairs needs it"
    assert controls == {
        "another answer", "another answer's sound", "silence", "no answer", "noise", "tone",
        "loop of words", "loop of codes", "broken model",
    }  # fmt: skip


def test_a_control_that_passes_fails_the_whole_in_words() -> None:
    """An ear that hears the right words in anything, also in silence, can show nothing."""
    found = troubles(run(FakeEar("seven and nine", in_silence="seven and nine")))
    passed = [trouble for trouble in found if "'heard'" in trouble]
    assert len(passed) == 1
    assert re.match(r"the control 'another answer' and .*'silence'.* passed the check 'heard', so that", passed[0])


def test_without_expected_words_the_table_says_so_and_the_broken_model_is_told_by_its_words() -> None:
    one = asked()[0]
    unknown = replace(one, question=replace(one.question, expectation=Expectation()))
    result = verify(tiny(), [unknown], FakeEar("mumble"), {}, slots=1)
    rows = {row.what: row for row in result.rows}
    for what in ("words: its text holds the expected words", "heard: a recogniser hears the expected words"):
        row = rows[f"{what}: not checked, none were given"]
        assert math.isnan(row.value) and row.n == 0 and row.met is None
    assert not any(row.what.startswith(("what must fail words", "what must fail heard")) for row in result.rows)
    broken = next(item for item in result.items if item.get("control") == "broken model")
    assert broken["must_fail"] == ["errors", AGREES]


def test_where_rounding_is_forgiven_only_another_questions_answer_must_not_agree(
    answers: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = answers
    again = replace(one, seed=2)
    exhibit = Exhibit(one.sound, "", "")
    evidence = [verification._Evidence(each, Settings(), exhibit, None) for each in (one, again, other)]
    assert verification._another(evidence, 0) is again
    monkeypatch.setattr(verification, "is_exact", lambda: False)
    assert verification._another(evidence, 0) is other and verification._another(evidence, 2) is one
    assert verification._another(evidence[:2], 0) is None


def test_what_cannot_be_asked_counts_as_not_passed() -> None:
    bad = replace(asked()[1], settings=lambda seed: Settings(voice="NOBODY", seed=seed))
    result = verify(tiny(), [asked()[0], bad], FakeEar("mumble"), {}, slots=1)
    assert [failure.item for failure in result.failures] == ["closes (seed 1)"]
    by_name = {row.what.split(":")[0]: row for row in result.rows}
    assert (by_name["silence"].value, by_name["silence"].n) == (0.5, 2)


class BrokenEar(FakeEar):
    """Breaks down at the sounds that `fails` tells."""

    def __init__(self, fails: Callable[[np.ndarray], bool]) -> None:
        super().__init__("mumble")
        self.fails = fails

    def hear(self, pcm: np.ndarray) -> str:
        if self.fails(pcm):
            raise EngineError("the recogniser broke down")
        return super().hear(pcm)


def test_what_cannot_be_heard_counts_as_not_passed_and_the_rest_is_verified() -> None:
    heard = iter(range(100))
    result = verify(tiny(), asked(), BrokenEar(lambda _: next(heard) == 0), {}, slots=1)
    assert [(f.item, f.reason) for f in result.failures] == [("opens (seed 1)", "the recogniser broke down")]
    by_name = {row.what.split(":")[0]: row for row in result.rows}
    assert (by_name["silence"].value, by_name["silence"].n) == (0.5, 2)


def test_a_control_that_cannot_be_tried_fails_the_whole_in_words() -> None:
    result = verify(tiny(), asked(), BrokenEar(lambda pcm: not pcm.any()), {}, slots=2)
    assert {failure.item for failure in result.failures} == {"the control 'silence'", "the control 'no answer'"}
    assert "the control 'silence' could not be tried: the recogniser broke down" in troubles(result)
    by_name = {row.what.split(":")[0]: row for row in result.rows}
    assert (by_name["silence"].value, by_name["silence"].n) == (1.0, 2), "no answer is lost by it"
    assert any(item.get("control") == "tone" for item in result.items)


def test_words_heard_where_none_are_said_are_errors(answers: list[Answer]) -> None:
    said = [Exhibit(answers[0].sound, "at seven", "at seven"), Exhibit(answers[1].sound, "", "the the the")]
    evidence = [verification._Evidence(answers[0], Settings(), each, None) for each in said]
    row = verification._rows(evidence, verification._Controls(), 0, 0.75)[-1]
    assert (row.what, row.value, row.n) == ("what is heard against what is said: WER", 1.5, 2)


def test_what_the_library_does_not_answer_counts_as_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_one(model: PersonaPlex, answer: Answer, settings: Settings) -> Offline:
        if answer.question is NINE:
            raise EngineError("lost")
        return run_offline(model, answer, settings)

    monkeypatch.setattr(verification, "run_offline", run_one)
    result = verify(tiny(), asked(), FakeEar("mumble"), {}, slots=2)
    assert [(f.item, f.reason) for f in result.failures] == [("closes (seed 1)", "the library does not answer: lost")]
    by_name = {row.what.split(":")[0]: row for row in result.rows}
    assert (by_name[AGREES].value, by_name[AGREES].n) == (0.5, 2)


def test_a_model_of_which_nothing_was_heard_does_not_pass() -> None:
    lost = [replace(each, settings=lambda seed: Settings(voice="NOBODY", seed=seed)) for each in asked()[:1]]
    result = verify(tiny(), [*lost, asked()[1]], FakeEar("mumble"), {}, slots=1, only_controls=["closes"])
    assert isinstance(result.error, ConversationError)
    assert (
        "no answer could be measured; the first: unknown voice 'NOBODY'" in str(result.error)
        and len(result.failures) == 1
    )


def test_a_question_for_controls_only_is_not_judged() -> None:
    result = verify(tiny(), asked(), FakeEar("mumble"), {}, slots=2, only_controls=["closes"])
    assert [item["question"] for item in result.items if "question" in item] == ["opens"]
    assert next(row for row in result.rows if row.what.startswith("words")).n == 1
    assert any(item.get("control") == "another answer" for item in result.items)


def test_ears() -> None:
    assert isinstance(open_ear(None, "nano"), GrammarEar) and open_ear(None, "nano").name == GRAMMAR
    other = open_ear(None, str(PARITY))
    assert isinstance(other, EngineEar) and other.name == "pocketsphinx"


@pytest.mark.parametrize("choice", [GRAMMAR, "pocketsphinx"])
def test_an_ear_hears_speech_and_nothing_in_silence(choice: str) -> None:
    ear = open_ear(choice, "nano")
    spoken = np.pad(say(AGENTS["NATM0"], "we open at seven").pcm, 24_000)
    assert "seven" in ear.hear(spoken).split()
    assert ear.hear(np.zeros(48_000, np.float32)) == ""
    ear.close()


# The command.


def program(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["verify", "--model", str(PARITY), *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_fails_a_random_model_with_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("personaplex.evaluate.hearing.EngineEar", lambda _: FakeEar("mumble"))
    code, out, err = program(
        capsys, "--ask", "When?", "--expect", "Saturday | Sunday", "--no-wait", "--listen", "0.4",
        "--voice", "VOICE0", "--keep", str(tmp_path),
        "--json", str(tmp_path / "v.json"),
    )  # fmt: skip
    assert code == 13, err
    assert "does not pass" in err.splitlines()[-1] and "words: its text holds" in err.splitlines()[-1]
    assert "| agrees: live engine and library say the same | ≥ 1.000 | 1.000 |" in out
    saved = Result.load(tmp_path / "v.json")
    assert saved.kind == "verify" and saved.about["seed"] == 0
    kept = sorted(path.name for path in tmp_path.glob("*.flac"))
    assert kept == ["When---seed-0.flac", "control--opening-time--seed-0.flac"]
    first = json.loads((tmp_path / "v.json").read_text())["items"][0]
    assert first["kept"] == kept[0] and first["expected"] == "Saturday or Sunday"
    beside = json.loads((tmp_path / "When---seed-0.json").read_text())
    assert (beside["left"], beside["heard"], beside["voice"]) == ("agent", "mumble", "VOICE0")
    assert beside["role"] == DEFAULT_PROMPT, "which was not named"
    assert first["question"] == first["asked"] == "When?" and first["asked_heard"] == "mumble"
    assert first["failed"]["words"].endswith("without 'Saturday' or 'Sunday'")


def test_the_command_passes_what_passes(
    result: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows met: exit code 0. What makes rows is tested above."""
    met = [row for row in result.rows if row.met]
    assert {row.what.split(":")[0] for row in met} >= {AGREES, "silence"}
    monkeypatch.setattr(verification, "verify", lambda *_, **__: Result("verify", {}, met))
    monkeypatch.setattr("personaplex.evaluate.hearing.EngineEar", lambda _: FakeEar("mumble"))
    code, _, err = program(capsys)
    assert code == 0 and "passes" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expect", "x"], "--expect goes with --ask or --audio"),
        (["--listen", "3"], "--listen goes with --ask or --audio"),
        (["--voice", "NATF0"], "--voice goes with --ask or --audio"),
        (["--ask", "a", "--audio", "b.wav"], "give --ask or --audio, not both"),
        (["basic", "--ask", "a"], "give basic or a question of your own"),
        (["--ask", "..."], "holds no word"),
        (["--ask", "a", "--expect", "?"], "--expect '?' holds no word"),
        (["--ask", "a", "--expect", "b|"], "--expect '' holds no word"),
        (["none.yaml"], "none.yaml does not exist"),
        (["--recogniser", "nobody"], "unknown recogniser 'nobody'"),
        (["--seed", "-1"], "seed"),
        (["--at-least", "2"], "2.0 is not in the range"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PersonaPlex, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    code, _, err = program(capsys, *arguments)
    assert code == 2 and message in err


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("none.wav", None, 3, "none.wav"),
        ("text.wav", b"hello", 3, "text.wav"),
        ("silent.wav", "silence", 3, "is silent"),
    ],
)
def test_a_recording_that_cannot_be_asked(
    name: str, content: bytes | str | None, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from personaplex.audio import write_audio

    path = tmp_path / name
    if content == "silence":
        write_audio(path, np.zeros(24_000, np.float32))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    found, _, err = program(capsys, "--audio", str(path), "--json", str(tmp_path / "v.json"))
    assert found == code and message in err
    assert [failure.item for failure in Result.load(tmp_path / "v.json").failures] == [f"{name} (seed 0)"]


def kept_answer(text: str = "when do you open", seed: int = 3) -> Answer:
    """Two frames of greeting, the question, and an answer that begins in frame 4."""
    t = np.arange(8 * FRAME_SAMPLES) / 24_000
    user, agent = (0.2 * np.sin(2 * np.pi * hertz * t).astype(np.float32) for hertz in (150, 250))
    user[: 2 * FRAME_SAMPLES] = user[4 * FRAME_SAMPLES :] = agent[: 4 * FRAME_SAMPLES] = 0
    question = replace(SEVEN, name=text, say=text, expectation=Expectation((("seven", "7"),), never=("nine",)))
    return Answer(question, seed, 2, 4, user, agent, ((4, " at"), (6, " seven")))


def test_a_kept_answer_is_a_recording_that_report_shows_right(tmp_path: Path) -> None:
    answer, folder = kept_answer(), tmp_path / "deep" / "kept"
    kept = KeptAnswers(folder, {"model": "tiny", "mode": "verify"})
    name = kept.keep(answer, Settings(voice="VOICE0", prompt="You are Anna."), "and seven", None)
    assert {path.name for path in folder.iterdir()} == {name, f"{Path(name).stem}.json"}
    sources = Sources()
    sources.read([folder], None)
    (one,) = sources.conversations
    assert np.allclose(one.agent, answer.agent, atol=1e-4) and np.allclose(one.user, answer.user, atol=1e-4)
    assert one.source == "verify --keep" and not one.doubts and not any("earlier version" in lack for lack in one.lacks)
    assert list(one.said) == [Said(0.32, " at"), Said(0.48, " seven")]
    assert list(one.heard) == [Said(0.16, "when do you open")]
    known = {"model": "tiny", "voice": "VOICE0", "role": "You are Anna.", "question": "when do you open", "seed": 3}
    known |= {"heard": "and seven", "expected": "seven or 7; never nine"}
    assert {name: one.about[name] for name in known} == known


def test_kept_answers_do_not_replace_each_other_and_long_questions_have_short_names(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path, {})
    names = [kept.keep(kept_answer(text), Settings(), None, None) for text in ("open?", "open!", "why " * 200)]
    assert names[:2] == ["open---seed-3.flac", "open---seed-3-2.flac"]
    assert len(names[2]) < 120 and names[2].endswith("seed-3.flac")
    assert all((tmp_path / name).is_file() for name in names)


def test_a_place_that_cannot_be_kept_in_is_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("personaplex.model.PersonaPlex.from_pretrained", never)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert main(["verify", "--keep", str(folder)]) == OutputError.exit_code
        assert f"--keep {folder}: that, or a part of it, is a file; name a folder" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.mkstemp", _read_only)
    assert main(["verify", "--keep", str(tmp_path / "new")]) == OutputError.exit_code
    assert "Read-only file system; choose another place" in capsys.readouterr().err


def _read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")
