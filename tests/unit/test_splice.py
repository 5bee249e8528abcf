"""An agent's lines from pieces: the right words in the right voice, and no word foretells another."""

from __future__ import annotations

import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import personaplex  # noqa: F401 - before mlx, for its BLAS

import mlx.core as mx  # isort: skip

from personaplex.dialogue import Line
from personaplex.dialogue.invented import Inventor
from personaplex.dialogue.world import NAMES
from personaplex.models.lm import LanguageModel
from personaplex.text import Tokenizer
from personaplex.train.bank import Bank
from personaplex.train.compose import Composer, Composition
from personaplex.train.splice import Splicer
from tests.unit.test_train_lm import SMALL, TOKENIZER, toy_bank


@pytest.fixture(scope="module")
def bank() -> Bank:
    """Each frame's codes tell the clip, the word in it (-1 in the tail) and how much of the word has passed."""
    toy = toy_bank(voices=2, users=10)
    codes = np.full((len(toy.codes), 8), -1)
    for clip in range(len(toy.kinds)):
        own = codes[toy.begins[clip] : toy.begins[clip + 1]]
        own[:, 0] = clip
        for word, first, last, _ in toy.words_of(clip):
            own[first : last + 1, 1] = word
            own[first : last + 1, 2] = np.arange(last + 1 - first)
    return replace(toy, codes=codes)


@pytest.fixture(scope="module")
def splicer(bank: Bank) -> Splicer:
    return Splicer(bank, [clip for clip, kind in enumerate(bank.kinds) if kind == "agent"])


def line_of(bank: Bank, clip: int) -> Line:
    line = bank.lines[clip]
    assert line is not None
    return Line(*line)


def clips_of(bank: Bank, intent: str, beginning: str, voice: int = 0) -> list[int]:
    lines = enumerate(bank.lines)
    of = [i for i, line in lines if line and line[0] == intent and line[2].startswith(beginning)]
    return [i for i in of if bank.voices[i] == voice]


def test_the_words_are_those_of_the_line_each_whole_and_in_its_voice(bank: Bank, splicer: Splicer) -> None:
    rng = np.random.default_rng(0)
    for clip in rng.choice(np.flatnonzero(bank.voices >= 0), 300):
        codes, words = splicer.say(rng, int(clip), line_of(bank, int(clip)))
        assert [word for word, _ in words] == bank.words_of(int(clip))[:, 0].tolist()
        assert {bank.voices[donor] for donor in codes[:, 0]} == {bank.voices[clip]}
        for word, first in words:
            length = len(bank.vocabulary[word])
            assert codes[first : first + length, 1].tolist() == [word] * length
            assert codes[first : first + length, 2].tolist() == [*range(length)]
        assert len(codes) == sum(len(bank.vocabulary[word]) for word, _ in words) + 2, "the tail is its own"
        assert set(codes[-2:, 0]) == {clip}


@pytest.mark.parametrize(("intent", "beginning", "at"), [("arithmetic", "that is", 0), ("price", "that is seventy", 2)])
def test_how_a_line_begins_does_not_tell_how_it_ends(
    bank: Bank, splicer: Splicer, intent: str, beginning: str, at: int
) -> None:
    one, other = clips_of(bank, intent, beginning)[:2]
    rng, drawn = np.random.default_rng(1), 2000

    def donors(clip: int) -> Counter[int]:
        """Which clips the word `at` is taken from."""
        found: Counter[int] = Counter()
        for _ in range(drawn):
            codes, words = splicer.say(rng, clip, line_of(bank, clip))
            found[int(codes[words[at][1], 0])] += 1
        return found

    first, second = donors(one), donors(other)
    assert len(first) > 3
    assert first[one] < drawn / 3, "it is not the clip itself"
    alike = sum(abs(first[clip] - second[clip]) for clip in {*first, *second}) / (2 * drawn)
    assert alike < 0.5 * len(first) ** 0.5 * 2 / drawn**0.5, "both are said with the same beginnings, equally often"


def test_pieces_are_joined_where_they_fit_in_time(bank: Bank) -> None:
    """Of many donors one is taken whose word begins where the last piece's next word began."""
    rng = np.random.default_rng(2)
    words = bank.words.copy()
    words[:, 3] = rng.integers(0, 16, len(words))
    shifted = replace(bank, words=words)
    agents = [clip for clip, kind in enumerate(bank.kinds) if kind == "agent"]
    splicer, gaps = Splicer(shifted, agents), []
    for clip in clips_of(bank, "arithmetic", "that is")[:40]:
        codes, said = splicer.say(rng, clip, line_of(bank, clip))
        before, donor = (int(codes[said[word][1], 0]) for word in (0, 1))
        gaps.append(abs(int(shifted.words_of(before)[1, 3]) - int(shifted.words_of(donor)[1, 3])))
    assert np.mean(gaps) < 3, "two at random are 5.3 apart on average"


def test_invented_names_are_new_and_sound_like_names() -> None:
    known, forbidden = [*NAMES[::2]], [*NAMES[1::2]]
    inventor, rng = Inventor(known, forbidden), np.random.default_rng(0)
    made = [inventor.word(rng) for _ in range(1000)]
    assert not {*made} & {*NAMES}
    assert len({*made}) > 700
    pairs = {pair for word in known for pair in zip(f" {word}", f"{word} ", strict=True)}
    assert all(pair in pairs for word in made for pair in zip(f" {word}", f"{word} ", strict=True))


def test_beginnings_are_measured_for_every_kind_of_answer(bank: Bank) -> None:
    """`scripts/measure_beginnings.py` on a model that knows nothing: every answer is counted, both ways."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "measure_beginnings.py"))
    toy = toy_bank(users=300)
    composition = Composition(longest_prompt=400, n_frames=640, natural=0)
    composer = Composer(toy, Tokenizer(TOKENIZER, 320), composition, seed=0)
    mx.random.seed(0)
    lm = LanguageModel(SMALL, 8)
    for voice in (script["Clips"](toy), composer.splicer):
        composer.splicer = voice
        right, asked = script["count"](lm, composer, 3, 0)
        assert asked.total() > 5 and right.total() < asked.total()
        assert "greet" not in asked and "spell" not in asked
