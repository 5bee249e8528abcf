"""Questions in YAML, and what makes an answer right: every mistake is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from personaplex.errors import UsageError
from personaplex.evaluate.prompts.expectation import Expectation
from personaplex.evaluate.prompts.questions import BUILT_IN, Question, read_questions
from personaplex.evaluate.words import words_said
from personaplex.text import PROMPTS

GOOD = """
voice: NATF2
prompt: teacher
seeds: 3
listen: 8
speaker_voice: slt
personas:
  bakery:
    prompt: "You work for Blue Door Bakery."
    voice: NATM1
questions:
  - name: opening
    persona: bakery
    say: What time do you open?
    expect: 7
    no_other_number: yes
  - say: Do you open on Sunday?
    expect: [no, [closed, "not open"], {any: [sunday, weekend]}]
    never: "we are open"
    seeds: [5, 9]
    waits: false
  - audio: sound/question.wav
    prompt: "You are a friendly clerk."
    voice: NATF0
    expect: hello
  - say: Who are you?
    persona: claudia
    expect: claudia
"""


def read(tmp_path: Path, text: str) -> list[Question]:
    path = tmp_path / "questions.yaml"
    path.write_text(text)
    return read_questions(path)


def test_a_file_of_questions(tmp_path: Path) -> None:
    opening, sunday, recorded, claudia = read(tmp_path, GOOD)
    assert (opening.name, opening.say, opening.persona) == ("opening", "What time do you open?", "bakery")
    assert opening.expectation == Expectation((("7",),), (), no_other_number=True)
    assert opening.prompt == "You work for Blue Door Bakery." and opening.voice_of(["NATF2", "NATM1"]) == "NATM1"
    assert opening.seeds == (1, 2, 3) and opening.listen_seconds == 8 and opening.waits
    assert sunday.name == sunday.say and sunday.prompt == PROMPTS["teacher"] and sunday.voice == "NATF2"
    assert sunday.expectation.wanted == (("no",), ("closed", "not open"), ("sunday", "weekend"))
    assert sunday.expectation.never == ("we are open",)
    assert sunday.seeds == (5, 9) and not sunday.waits
    assert recorded.audio == tmp_path / "sound" / "question.wav" and recorded.name == "question.wav"
    assert recorded.voice == "NATF0" and recorded.prompt == "You are a friendly clerk."
    assert claudia.voice_of(["VARF2"]) == "VARF2" and claudia.sampling == {"text_temperature": 0.8}
    assert claudia.where == f"{tmp_path}/questions.yaml:26: questions[3]"


ONE = "questions:\n- say: What is it?\n  expect: it\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("questions: [", r"yaml:1: no YAML"),
        ("a: b: c", r"yaml:1: no YAML: mapping values are not allowed"),
        ("- x", r"yaml:1: expected a mapping, found a list"),
        ("voice: NATF2", "there are no questions"),
        ("questions: []", r"yaml:1: questions: the list of questions is empty"),
        ("questions: hello", r"questions: expected a list, found 'hello'"),
        ("questions:\n- hello", r"yaml:2: questions\[0\]: expected a mapping, found 'hello'"),
        ("question:\n- x", "unknown key 'question'; known are personas, questions, seeds"),
        ("questions:\n- say: hi\n  expct: x", r"yaml:3: questions\[0\]: unknown key 'expct'; known are name, say"),
        ("questions:\n- expect: x", r"yaml:2: questions\[0\]: a question needs either `say`"),
        ("questions:\n- say: hi\n  audio: a.wav\n  expect: x", "a question needs either `say`"),
        ("questions:\n- say: hi", "a question needs `expect`"),
        ("questions:\n- say: hi\n  expect:", r"yaml:3: questions\[0\].expect: expected a text, found nothing"),
        ("questions:\n- say: hi\n  expect: []", "nothing is expected"),
        ("questions:\n- say: hi\n  expect: [[]]", "expected a phrase at least"),
        ("questions:\n- say: hi\n  expect: '...'", "there is no word in '...'"),
        ("questions:\n- say: '?!'\n  expect: x", r"say: there is no word in '\?!'"),
        ("questions:\n- say: hi\n  expect: {all: x}", "unknown key 'all'; known are any"),
        ("questions:\n- say: hi\n  expect: {}", "expected the key `any`"),
        ("questions:\n- say: [hi]\n  expect: x", r"say: expected a text, found a list"),
        ("questions:\n- say: hi\n  say: ho\n  expect: x", r"yaml:3: questions\[0\]: the key 'say' stands there twice"),
        ("questions:\n- say: hi\n  expect: x\n- say: hi\n  expect: y", "the name 'hi' is taken"),
        ("seeds: 0\n" + ONE, r"yaml:1: seeds: expected a whole number, 1 or more, found '0'"),
        ("seeds: many\n" + ONE, "found 'many'"),
        ("seeds: 1.5\n" + ONE, "found '1.5'"),
        ("seeds: 100001\n" + ONE, "too many"),
        ("seeds: [1, 1]\n" + ONE, "expected seeds, each once"),
        ("seeds: [-1]\n" + ONE, "a whole number, 0 or more, found '-1'"),
        ("listen: soon\n" + ONE, "expected a number of seconds above 0"),
        ("listen: .nan\n" + ONE, "expected a number of seconds above 0"),
        ("waits: perhaps\n" + ONE, "expected true or false, found 'perhaps'"),
        ("persona: nobody\n" + ONE, "unknown 'nobody'; there are aria, assistant"),
        ("prompt: teachr\n" + ONE, "unknown prompt 'teachr'; known are assistant"),
        ("personas:\n  x: {voice: NATF0}\n" + ONE, r"yaml:2: personas.x: a persona needs a prompt"),
        ("personas:\n  x: {prompt: You are x., mood: good}\n" + ONE, "unknown key 'mood'; known are prompt, voice"),
        (
            "questions:\n- {say: hi, expect: x, prompt: You are it., persona: aria}",
            "a question has a `prompt` or a `persona`, not both",
        ),
        ("? [a]\n: b\n", "a key must be a word"),
        ("[" * 5000, "no YAML"),
        ("\t- x", "no YAML"),
        ("a: *nowhere", "no YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "no YAML: but found another document"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_questions(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="unknown questions 'bsic'; there are nano, basic"):
        read_questions("bsic")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        read_questions(tmp_path / "a.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_questions(tmp_path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_in_the_built_in_sets_every_answer_is_the_wrong_one_to_all_others(name: str) -> None:
    questions = read_questions(name)
    assert len(questions) >= 4
    for one in questions:
        for other in questions:
            assert (one is other) != one.expectation.differs_from(other.expectation)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("We open at 7:30, O'Neil!", "we open at seven thirty o'neil"),
        ("it's 42 dollars", "it's forty two dollars"),
        ("at 7:00", "at seven"),
        ("forty-two", "forty two"),
        ("it’s a café", "it's a café"),
        ("call 5551234 or 05", "call 5551234 or 05"),
        ("7pm, x7y 7up", "seven pm x y up"),
        ("... --", ""),
    ],
)
def test_words_as_they_are_said(text: str, words: str) -> None:
    assert " ".join(words_said(text)) == words


@pytest.mark.parametrize(
    ("expected", "said", "missing"),
    [
        (Expectation((("seven",),)), "We open at 7.", []),
        (Expectation((("part",),)), "at the party", ["without 'part'"]),
        (Expectation((("thirty nine",),)), "thirty of the nine", ["without 'thirty nine'"]),
        (Expectation((("thirty nine",),)), "the 39 steps", []),
        (Expectation((("open",), ("closed", "shut"))), "open or shut", []),
        (Expectation((("open",), ("closed", "shut"))), "open", ["without 'closed' or 'shut'"]),
        (Expectation((("yes",),), ("no",)), "yes and no", ["with 'no'"]),
        (Expectation((("yes",),), ("no",)), "yes I know", []),
        (Expectation((("seven",),), (), True), "from seven to three", ["with the number 'three'"]),
        (Expectation((("seven",),), (), True), "at seven thirty", ["with the number 'seven thirty'"]),
        (Expectation((("seven", "7 thirty"),), (), True), "at seven thirty", []),
        (Expectation((("seven",),)), "from seven to three", []),
        (Expectation((), ("no",)), "", ["nothing is said"]),
        (Expectation((("yes",),)), "…", ["nothing is said"]),
    ],
)
def test_what_is_missing_of_a_right_answer(expected: Expectation, said: str, missing: list[str]) -> None:
    assert expected.missing(said) == missing
    assert expected.is_met(said) == (not missing)


def test_who_wants_a_part_of_what_another_wants_does_not_differ() -> None:
    """The right answer to one is right for the other, too: it is no control."""
    seven, later, nine = (Expectation(((phrase,),)) for phrase in ("seven", "7:30", "nine"))
    assert not seven.differs_from(later) and not later.differs_from(seven)
    assert seven.differs_from(nine) and nine.differs_from(later)
    assert not seven.differs_from(Expectation(never=("nine",)))
