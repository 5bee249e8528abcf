"""Role prompts and the agent's text, through real SentencePiece."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from personaplex.errors import CheckpointError, PersonaError
from personaplex.text import EPAD, PAD, PROMPTS, TextStream, Tokenizer, role_text, wrapped
from tests.conftest import PARITY

MODEL = PARITY / "tokenizer_spm_32k_3.model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL, 320)


@pytest.fixture(scope="module")
def pieces() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(MODEL))


def test_the_role_stands_between_tags_with_spaces(tokenizer: Tokenizer, pieces: SentencePieceProcessor) -> None:
    """The space before the closing tag makes it the tokens the model knows; glued on, they are others."""
    assert wrapped("  Be kind. ") == "<system> Be kind. <system>"
    assert wrapped("<system> Be kind. <system>") == "<system> Be kind. <system>"
    assert wrapped("<system>") == "<system> <system> <system>"
    for text in PROMPTS.values():
        tokens, tag = tokenizer.role_tokens(text), pieces.encode("<system>")
        assert tokens == pieces.encode(f"<system> {text} <system>")
        assert tokens[: len(tag)] == tokens[-len(tag) :] == tag
        assert tokens != pieces.encode(f"<system> {text}<system>")


def test_it_is_sentencepiece_not_the_longest_match(tokenizer: Tokenizer, pieces: SentencePieceProcessor) -> None:
    known = {pieces.id_to_piece(i): i for i in range(320)}

    def greedy(text: str) -> list[int]:
        out, rest = [], "\u2581" + text.replace(" ", "\u2581")
        while rest:
            n = next((n for n in range(len(rest), 0, -1) if rest[:n] in known), 1)
            out.append(known.get(rest[:n], 0))
            rest = rest[n:]
        return out

    texts = [wrapped(t) for t in [*PROMPTS.values(), "Zoë costs 17 €", "the customers' questions"]]
    assert any(greedy(text) != tokenizer.role_tokens(text) for text in texts)
    assert 0 in greedy(texts[-2]) and 0 not in tokenizer.role_tokens(texts[-2])


def test_an_empty_role_is_no_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.role_tokens("") == tokenizer.role_tokens("  \n") == []


@pytest.mark.parametrize("text", ["Hello there", "naïve café", "日本 and 17 €", "🙂 fine"])
def test_text_survives_byte_pieces(tokenizer: Tokenizer, pieces: SentencePieceProcessor, text: str) -> None:
    """The reference lets byte pieces through as `<0xE2>`; here they are the characters they stand for."""
    tokens = pieces.encode(text)
    assert tokenizer.decode([PAD, *tokens, EPAD, PAD, 1, 2]) == text
    stream, shown = TextStream(tokenizer), ""
    for token in tokens:
        piece = stream.push(token)
        assert "\ufffd" not in piece
        shown += piece
    assert (shown + stream.flush()).strip() == text


def test_bytes_that_are_no_character_do_not_hold_up_the_rest(
    tokenizer: Tokenizer, pieces: SentencePieceProcessor
) -> None:
    cut = pieces.encode("€")[:-1]
    assert tokenizer.decode([*cut, *pieces.encode("yes")]) == "\ufffd yes"
    assert tokenizer.decode(cut) == "\ufffd"


def test_presets_and_texts() -> None:
    assert role_text("teacher") == PROMPTS["teacher"]
    for text in ("You sell shoes.", "你是一位友善的老师", "Brief!", ""):
        assert role_text(text) == text
    with pytest.raises(PersonaError, match="unknown prompt 'teachr'; known are assistant, focused"):
        role_text("teachr")


def test_a_tokenizer_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="320 pieces; the language model expects 32000"):
        Tokenizer(MODEL, 32_000)
    bad = tmp_path / "bad.model"
    for data in (b"", b"no model at all", MODEL.read_bytes()[:2000]):
        bad.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"bad\.model"):
            Tokenizer(bad, 320)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path / "none.model", 320)


def test_the_committed_tokenizer_is_what_the_script_makes(tmp_path: Path) -> None:
    import runpy
    import sys

    out = tmp_path / "made.model"
    argv, sys.argv = sys.argv, ["make", str(out)]
    try:
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "make_tiny_tokenizer.py"), run_name="__main__")
    finally:
        sys.argv = argv
    made, committed = SentencePieceProcessor(model_file=str(out)), SentencePieceProcessor(model_file=str(MODEL))
    assert [made.id_to_piece(i) for i in range(320)] == [committed.id_to_piece(i) for i in range(320)]


def test_a_text_is_said_word_by_word_no_faster_than_people_speak(tokenizer: Tokenizer) -> None:
    words = ["a", "wonderfully", "long", "y"]
    tokens = tokenizer.spoken_tokens("  a wonderfully\nlong  y ")
    assert tokenizer.decode(tokens) == " ".join(words)
    frames = [max(1 + len(tokenizer.tokens(word)), round((len(word) + 1) / 1.2)) for word in words]
    assert len(tokens) == sum(frames) and tokens[0] == tokens[frames[0]] == EPAD
    assert tokenizer.spoken_tokens(" ") == []
