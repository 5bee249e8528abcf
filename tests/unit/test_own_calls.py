"""Calls in which an agent says the model's own clips: begun as any, their text learned, their sound not."""

from __future__ import annotations

import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from personaplex.dialogue import VALUES, answer_key, is_right, key_words
from personaplex.errors import TrainingError
from personaplex.models.streams import AGENT, TEXT
from personaplex.text import PAD, Tokenizer
from personaplex.train.bank import OWN, Bank
from personaplex.train.beginnings import Beginnings
from personaplex.train.compose import Composer, Composition, Reply, _Call
from tests.unit.test_train_lm import TOKENIZER, toy_bank

LEAD = 2


@pytest.fixture(scope="module")
def bank() -> Bank:
    """The first code of each frame tells the clip, the second how far in it the frame is."""
    toy = toy_bank(voices=2, users=600)
    lengths = np.diff(toy.begins)
    codes = np.zeros((len(toy.codes), 8), int)
    codes[:, 0] = np.repeat(np.arange(len(lengths)), lengths)
    codes[:, 1] = np.arange(len(codes)) - np.repeat(toy.begins[:-1], lengths)
    return replace(toy, codes=codes)


@pytest.fixture(scope="module")
def own(bank: Bank) -> list[int]:
    return [clip for clip, kind in enumerate(bank.kinds) if kind == OWN]


@pytest.fixture(scope="module")
def beginnings(bank: Bank, own: list[int]) -> Beginnings:
    return Beginnings(bank, own, LEAD)


def text_of(bank: Bank, clip: int) -> str:
    line = bank.lines[clip]
    assert line is not None
    return line[2]


def test_what_begins_alike_is_all_that_does(bank: Bank, own: list[int], beginnings: Beginnings) -> None:
    """Against the plain comparison of words and times, for clips of all kinds."""
    rng = np.random.default_rng(0)
    heard: dict[int, list[tuple[int, ...]]] = {}
    for clip in own:
        words = bank.words_of(clip)
        flat = [int(bank.voices[clip])]
        heard[clip] = []
        for number, first, *_ in words.tolist():
            heard[clip].append((*flat, first))
            flat += [first, number]
    for clip in rng.choice(own, 40):
        for word in range(len(heard[clip])):
            same = [o for o in own if len(heard[o]) > word and heard[o][word] == heard[clip][word]]
            assert sorted(beginnings.alike(int(clip), word)) == same


def test_how_a_line_begins_does_not_tell_how_it_ends(bank: Bank, own: list[int], beginnings: Beginnings) -> None:
    one, other = [clip for clip in own if text_of(bank, clip).startswith("the answer is") and not bank.voices[clip]][:2]
    rng, drawn = np.random.default_rng(1), 4000

    def donors(clip: int) -> Counter[int]:
        return Counter(int(beginnings.say(rng, clip, [3])[0, 0]) for _ in range(drawn))

    first, second = donors(one), donors(other)
    assert len(first) == len(second) == 100
    alike = sum(abs(first[clip] - second[clip]) for clip in {*first, *second}) / (2 * drawn)
    assert alike < 0.5 * len(first) ** 0.5 * 2 / drawn**0.5, "equally often in both"


def test_the_sound_changes_hands_before_the_text_does_and_keeps_its_place(
    bank: Bank, own: list[int], beginnings: Beginnings
) -> None:
    rng, exchanged = np.random.default_rng(2), 0
    for clip in rng.choice(own, 300).tolist():
        words = bank.words_of(clip)
        line = Reply(clip, bank.lines[clip]).line
        parted = [i for i in range(len(words)) if bank.vocabulary[words[i, 0]] in text_of(bank, clip).split()[-2:]]
        codes = beginnings.say(rng, clip, parted)
        assert line and codes[:, 1].tolist() == list(range(len(bank.clip(clip))))
        # From the last parted word's text on, less the lead, it is the clip itself.
        last = max(int(words[parted[-1], 1]) - LEAD, 0)
        assert set(codes[last:, 0]) == {clip}
        assert {bank.voices[donor] for donor in codes[:, 0]} == {bank.voices[clip]}
        exchanged += codes[0, 0] != clip
        joins = np.flatnonzero(np.diff(codes[:, 0])) + 1
        assert set(joins.tolist()) <= {int(words[i, 1]) - LEAD for i in parted}
    assert exchanged > 50
    assert (bank.clip(own[0])[:, 0] == own[0]).all(), "the bank is as it was"


@pytest.fixture(scope="module")
def composer() -> Composer:
    config = Composition(longest_prompt=400, n_frames=640, natural=0, service=1, no_role=0)
    return Composer(toy_bank(users=600), Tokenizer(TOKENIZER, 320), config, seed=5)


def test_own_calls_say_own_clips_and_are_right(composer: Composer) -> None:
    bank = composer.bank
    for seed in range(40):
        call = _Call(composer, np.random.default_rng(seed))
        held = VALUES["heldout"]
        assert not call.natural and call.greeting is not None and bank.kinds[call.greeting.clip] == OWN
        assert call.facts.name not in held.names and call.facts.company not in held.companies
        assert call.facts.opens not in held.opens and call.facts.closes not in held.closes
        for _ in range(4):
            user, reply = call._question(call.start)
            asked = bank.lines[user]
            assert asked and bank.kinds[reply.clip] == OWN
            right = answer_key(asked[0], asked[1], call.facts, call.memory)
            assert right is not None and is_right(reply.line.text, right.intent, right.key)


def test_the_voice_prompt_is_the_synthesisers_in_every_call(composer: Composer) -> None:
    synthesised = {
        composer.bank.clip(i)[:22].tobytes() for i, kind in enumerate(composer.bank.kinds) if kind == "agent"
    }
    for seed in range(10):
        assert _Call(composer, np.random.default_rng(seed))._voice_prompt()[:22].tobytes() in synthesised


def test_text_and_sound_weigh_what_they_should(composer: Composer) -> None:
    """Own calls: every word, no sound. Natural ones: sound, and of the text how an answer begins."""

    def words_and_sound(**changes: Any) -> tuple[np.ndarray, int]:
        made = Composer(composer.bank, composer.tokenizer, replace(composer.config, **changes), seed=3)
        batch = made.batch(0, 3)
        talks = [made.dialogue(np.random.default_rng([3, 0, i])) for i in range(3)]
        talking = np.stack([np.arange(talk.n_frames) >= start for talk, start in talks])
        text = batch.frames[:, TEXT]
        spoken = np.concatenate([talk.speech for talk, _ in talks])[batch.audio_at]
        return batch.text_weight[(text > PAD) & talking], int((spoken & (batch.audio_weight[:, 0] > 0)).sum())

    text, sound = words_and_sound()
    assert (text == 1).all() and sound == 0
    text, sound = words_and_sound(natural=1, unasked=0)
    assert 0 < (text == 1).mean() < 0.5 and set(text) == {0, 1} and sound > 100
    text, sound = words_and_sound(natural=1, unasked=0, natural_text=0.25)
    assert 0 < (text == 1).mean() < 0.5 and set(text) == {0.25, 1} and sound > 100
    text, sound = words_and_sound(natural=1, unasked=1, natural_text=0.25)
    assert (text == 0).all() and sound > 100


def test_who_is_not_asked_says_anything(composer: Composer) -> None:
    made = Composer(composer.bank, composer.tokenizer, replace(composer.config, natural=1, unasked=1), seed=3)
    right = said = 0
    for seed in range(30):
        call = _Call(made, np.random.default_rng(seed))
        user, reply = call._question(call.start)
        asked = composer.bank.lines[user]
        assert asked and composer.bank.kinds[reply.clip] == "agent" and composer.bank.voices[reply.clip] == call.voice
        answer = answer_key(asked[0], asked[1], call.facts, call.memory)
        assert answer is not None
        right, said = right + is_right(reply.line.text, answer.intent, answer.key), said + 1
    assert right < said / 5


def test_what_an_own_call_holds_is_laid_out_as_its_clip_is(composer: Composer) -> None:
    """The words stand at the clip's times and the sound `text_lead` frames later."""
    call = _Call(composer, np.random.default_rng(0))
    assert call.greeting is not None
    begin, reply = call.start + 5, call.greeting
    end = call._agent(reply, begin)
    codes, words = composer.bank.clip(reply.clip), composer.bank.words_of(reply.clip)
    assert end == begin + LEAD + len(codes)
    first = next(i for i, (word, *_) in enumerate(words) if composer.bank.vocabulary[word] in key_words(reply.line))
    assert np.flatnonzero(call.line.fact)[0] >= begin + int(words[first, 1])
    assert call.line.frames[TEXT, begin] == composer.tokens(composer.bank.vocabulary[words[0, 0]])[0]
    last = int(words[-1, 1])
    np.testing.assert_array_equal(call.line.frames[AGENT, begin + LEAD + last : end], codes[last:].T)


def test_a_user_may_speak_before_the_greeting(composer: Composer) -> None:
    """In an eager call somebody's words come at once, and the agent says nothing before them."""
    config = replace(composer.config, eager=1.0, quiet_calls=0, interruptions=0, backchannels=0, noisy=0)
    eager = Composer(composer.bank, composer.tokenizer, config, seed=5)
    for seed in range(8):
        talk, start = eager.dialogue(np.random.default_rng(seed))
        user = np.flatnonzero((talk.frames[9:, start:] != composer.bank.silence[:, None]).any(axis=0))
        assert user[0] <= 3
        words = np.flatnonzero(talk.frames[TEXT, start:] != PAD)
        assert words[0] > talk.heard[0][0] - start
        assert not talk.speech[start : start + words[0]].any()
        assert (talk.frames[AGENT, start] == composer.bank.silence).all()


def test_a_bank_without_own_clips_is_refused_where_they_are_needed(composer: Composer) -> None:
    silent = toy_bank(users=300, own=False)
    with pytest.raises(TrainingError, match="personaplex train own"):
        Composer(silent, composer.tokenizer, composer.config, seed=0)
    Composer(silent, composer.tokenizer, replace(composer.config, natural=1), seed=0).batch(0, 1)


class Oracle:
    """A language model that guesses every token right, or always the same one."""

    def __init__(self, always: int | None = None) -> None:
        self.always = always

    def columns(self, frames: mx.array) -> mx.array:
        return mx.pad(frames, [(0, 0), (0, 0), (0, 1)]).swapaxes(1, 2)

    def hidden(self, columns: mx.array, pinned: mx.array) -> mx.array:
        return columns[:, :, TEXT]

    def text_head(self, right: mx.array) -> mx.array:
        guess = right if self.always is None else mx.full(right.shape, self.always)
        return (mx.arange(320) == guess[..., None]).astype(mx.float32)


def test_what_is_read_off_the_own_voice_is_measured(composer: Composer) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "measure_own_voice.py"))
    one = Composer(composer.bank, composer.tokenizer, replace(composer.config, interruptions=0, backchannels=0), 0)
    found = script["count"](Oracle(), one, 2)
    assert (found[:, 0] == found[:, 1]).all() and found[:, 1].min() > 5
    words, facts, begins, stops = script["count"](Oracle(PAD), one, 2)
    assert words[0] == facts[0] == begins[0] == 0 and stops[0] == stops[1] == found[3, 1]
    table = script["measure"](Oracle(), composer.bank, composer.tokenizer, 1, seed=0)
    assert [row.split(" | ")[0] for row in table.splitlines()[2:]] == ["| clips", "| its own voice"]
