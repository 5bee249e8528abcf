"""An answer that is heard as something else: the words keep their time, the sound tells nothing of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from personaplex.dialogue import VALUES, answer_key, is_right
from personaplex.models.streams import AGENT, TEXT
from personaplex.text import PAD, Tokenizer
from personaplex.train.clips import TAIL_FRAMES
from personaplex.train.compose import Composer, Composition, _Call
from personaplex.train.murmur import Murmur
from tests.unit.test_train_lm import TOKENIZER, toy_bank

BANK = toy_bank(users=600)
AGENTS = [clip for clip, kind in enumerate(BANK.kinds) if kind == "agent"]


@pytest.fixture(scope="module")
def composer() -> Composer:
    config = Composition(longest_prompt=400, n_frames=640, natural=0, murmured=1, service=1, no_role=0)
    return Composer(BANK, Tokenizer(TOKENIZER, 320), config, seed=5)


def test_a_word_takes_as_long_as_the_voice_takes_for_it() -> None:
    """In the toy bank a word takes a frame a letter."""
    murmur, rng = Murmur(BANK, AGENTS), np.random.default_rng(0)
    codes, words = murmur.say(rng, 0, "that is forty dollars")
    assert [word for word, _ in words] == ["that", "is", "forty", "dollars"]
    begins = [begin for _, begin in words]
    assert all(abs(b - a - len(word)) <= 1 for (word, a), (_, b) in itertools.pairwise(words))
    assert codes.shape == (begins[-1] + murmur.frames_of(0, "dollars") + TAIL_FRAMES, 8)
    again = murmur.say(np.random.default_rng(1), 0, "that is forty dollars")
    assert again[1] == words and not np.array_equal(again[0], codes), "the same time, another sound"


def test_a_word_that_nobody_said_takes_as_long_as_words_of_its_length() -> None:
    murmur = Murmur(BANK, AGENTS)
    assert abs(murmur.frames_of(0, "qqqqqqq") - 7) <= 1
    assert murmur.frames_of(0, "q" * 12) > murmur.frames_of(0, "qqq")


def test_the_sound_is_of_the_voice_and_begins_and_ends_as_a_line_does() -> None:
    murmur, rng = Murmur(BANK, AGENTS), np.random.default_rng(0)
    begins = {BANK.clip(clip)[:3].tobytes() for clip in AGENTS}
    ends = {BANK.clip(clip)[-3:].tobytes() for clip in AGENTS}
    for _ in range(20):
        codes, _ = murmur.say(rng, 0, "you can find us at twelve oak street")
        assert codes[:3].astype(BANK.codes.dtype).tobytes() in begins
        assert codes[-3:].astype(BANK.codes.dtype).tobytes() in ends


def test_murmured_answers_are_right_and_may_hold_what_nobody_said(composer: Composer) -> None:
    new_names = new_times = 0
    for seed in range(40):
        call = _Call(composer, np.random.default_rng(seed))
        assert call.murmured and not call.natural
        new_names += call.facts.name not in VALUES["train"].names
        new_times += call.facts.opens is not None and call.facts.opens not in VALUES["train"].opens
        for values in (VALUES["heldout"],):
            assert call.facts.name not in values.names and call.facts.company not in values.companies
            assert call.facts.opens not in values.opens and call.facts.closes not in values.closes
        for _ in range(4):
            user, reply = call._question(call.start)
            asked = BANK.lines[user]
            assert asked
            right = answer_key(asked[0], asked[1], call.facts, call.memory)
            assert right is not None and is_right(reply.line.text, right.intent, right.key)
            assert " ".join(word for word, _ in call._said(reply)[1]) == reply.line.text
    assert new_names > 8 and new_times > 4


def test_a_user_may_speak_before_the_greeting(composer: Composer) -> None:
    """In an eager call somebody's words come at once, and the agent says nothing before them."""
    config = replace(composer.config, eager=1.0, quiet_calls=0, interruptions=0, backchannels=0, noisy=0)
    eager = Composer(BANK, composer.tokenizer, config, seed=5)
    for seed in range(8):
        talk, start = eager.dialogue(np.random.default_rng(seed))
        user = np.flatnonzero((talk.frames[9:, start:] != BANK.silence[:, None]).any(axis=0))
        assert user[0] <= 3
        words = np.flatnonzero(talk.frames[TEXT, start:] != PAD)
        assert words[0] > talk.heard[0][0] - start
        assert not talk.speech[start : start + words[0]].any()
        assert (talk.frames[AGENT, start] == BANK.silence).all()
