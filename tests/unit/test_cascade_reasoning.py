"""What a reasoning model says aloud."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personaplex.cascade.reasoning import Spoken, begins_thinking

PARTS = [
    "<think>", "</think>", "[THINK]", "[/THINK]", "<thinking>", "</thinking>", "<|channel|>analysis<|message|>",
    "<|channel|>final<|message|>", "<thi", "</", "[", "<", "a < b", " ", "\n\n", "Good day. ", "it is", "ought", "nk>",
]  # fmt: skip


def said(*pieces: str, thinks: bool = False) -> str:
    spoken = Spoken(thinks=thinks)
    return "".join([*map(spoken.push, pieces), spoken.flush()])


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("Good day.", "Good day."),
        ("<think>Hm, who is it?</think>\n\nGood day.", "Good day."),
        ("One <think>two</think> three.", "One three."),
        ("One.<think>two</think> Three.", "One. Three."),
        ("Good day.<think>and now", "Good day."),
        ("<think>for ever", ""),
        ("<thinking>a</thinking><think>b</think> c", "c"),
        ("[THINK]1 < 2[/THINK]Yes, 1 < 2, or <thin ice>.", "Yes, 1 < 2, or <thin ice>."),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Yes."),
        ("<think>a <think>b</think>\nYes.", "Yes."),
        ("It ends with <thi", "It ends with <thi"),
    ],
)
def test_thoughts_are_not_said(text: str, heard: str) -> None:
    assert said(text) == heard == said(*text)


def test_a_prompt_may_have_begun_the_thought() -> None:
    assert begins_thinking("<|assistant|><think>\n") and not begins_thinking("<think>\n\n</think>\n\n")
    assert said("Hm. </think> Yes.", thinks=True) == "Yes." and said("Hm.", thinks=True) == ""


def test_what_can_be_said_is_said_at_once() -> None:
    spoken = Spoken()
    assert [spoken.push(piece) for piece in ("Good ", "day <", "b", " <th", "ink>no", "</think", "> on")] == [
        "Good ", "day ", "<b", " ", "", "", "on",
    ]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_any_chunking_gives_the_same(parts: list[str], sizes: list[int], thinks: bool) -> None:
    text, at = "".join(parts), 0
    pieces: list[str] = []
    while at < len(text):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(text[at : at + size])
        at += size
    assert said(*pieces, thinks=thinks) == said(text, thinks=thinks)
