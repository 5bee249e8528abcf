"""What is said of what a language model writes: sentences as they come, and only what can be said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personaplex.cascade.sentences import LONGEST, SentenceSplitter, split_sentences
from personaplex.cascade.speakable import CODE, speakable


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Smith paid $3.50 to Mr. J. R. Tolkien at 5 p.m.", "He left.", "Then?", "No. 5 is alive!", "No.", "I am."],
        ['He said "Stop!" and went.', '"Really?" she said.', "(Yes.)", "Ok... fine."],
        [
            "It costs 1,234.56 euros, i.e. too much.",
            "Version 2.0.1 is out.",
            "See you on Jan. 3 in Washington, D.C. then.",
        ],
        ["Open https://a.example.com/x?y=1.", "Then write to a.b@example.com.", "Done!"],
        ["你好。", "我是机器人！", "Good."],
        ["What?!", "Yes!!!", "“Quoted.”", "End"],
    ],
)
def test_sentences_are_cut_where_they_end(sentences: list[str]) -> None:
    text = " ".join(sentences)
    assert split_sentences(text) == sentences


def test_lines_and_code_stay_whole() -> None:
    text = "First:\n1. Do it. Now.\n2. Then that.\n```python\nx = 1. \nPrint. It!\n```\nBye."
    assert split_sentences(text) == [
        "First:", "1. Do it.", "Now.", "2. Then that.", "```python\nx = 1. \nPrint. It!\n```", "Bye.",
    ]  # fmt: skip


def test_a_sentence_leaves_with_the_first_letter_of_the_next() -> None:
    splitter = SentenceSplitter()
    assert list(splitter.push("It is noon.")) == [] and list(splitter.push(" ")) == []
    assert list(splitter.push("A")) == ["It is noon."]
    assert list(splitter.flush()) == ["A"] and list(splitter.flush()) == []


@given(st.text("aA .!?\"'\n1`好。", max_size=80), st.lists(st.integers(1, 9), min_size=1))
def test_any_chunking_gives_the_same_sentences_and_loses_nothing(text: str, sizes: list[int]) -> None:
    splitter, found, at, i = SentenceSplitter(), [], 0, 0
    while at < len(text):
        size = sizes[i % len(sizes)]
        found += list(splitter.push(text[at : at + size]))
        at, i = at + size, i + 1
    found += list(splitter.flush())
    assert found == split_sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_nobody_waits_for_a_sentence_without_end() -> None:
    found = split_sentences("word, and more of it " * 2000)
    assert max(map(len, found)) <= LONGEST + 1 and len(" ".join(found).split()) == 10_000
    assert max(map(len, split_sentences("x" * 10_000))) <= LONGEST + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("**Hi** 😀👍🏽 see [the docs](https://x.org/a)!", "Hi see the docs!"),
        ("Go to https://www.example.com/a/b?c=d. Now", "Go to example dot com. Now"),
        ("```py\nx = 1\n``` done", f"{CODE} done"),
        ("```py\nx = 1", CODE),
        ("Use `ls -l` or _this_.", "Use ls -l or this."),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a, b, 1, 2"),
        ("- one\n- two\n# three", "one two three"),
        ("Write me@x.com & save 50%", "Write me at x dot com and save 50 percent"),
        ("snake_case 5*3 👨‍👩‍👧 ok", "snake_case 5*3 ok"),
        ("Grüße, ça va? 你好", "Grüße, ça va? 你好"),
        ("😀 🎉", ""),
        ("...", ""),
        ("", ""),
        ("a\x00b\u200b", "ab"),
    ],
)
def test_only_what_can_be_said_is_said(text: str, said: str) -> None:
    assert speakable(text) == said


@given(st.text(max_size=60))
def test_any_text_is_one_line_or_nothing(text: str) -> None:
    said = speakable(text)
    assert said == " ".join(said.split()) and (not said or any(c.isalnum() for c in said))
