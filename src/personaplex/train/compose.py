"""Composing training dialogues from clips: fresh facts, prompts and timing in every batch.

A dialogue is laid out as the engine would live it: voice prompt, silence, role text, silence (as in
`engine.prompt.compose`), then talk. What is said comes from the clip bank; who says what to whom, what the role text
holds, when people begin, pause, interrupt and fall silent is drawn anew each time, so there is nothing to memorise.
The batch of a step depends on the seed and the step alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from personaplex.dialogue import (
    Facts,
    Line,
    Memory,
    answer_key,
    assistant_prompt,
    key_words,
    remember,
    role_prompt,
    sample_facts,
)
from personaplex.dialogue.line import TOLD
from personaplex.dialogue.plan import WEIGHTS
from personaplex.engine.prompt import SPACER_FRAMES
from personaplex.errors import TrainingError
from personaplex.text import Tokenizer
from personaplex.train.bank import OWN, Bank, Index, Key
from personaplex.train.beginnings import Beginnings
from personaplex.train.timeline import Timeline
from personaplex.units import N_CODEBOOKS

Array: TypeAlias = Any
"""A NumPy array where batches are made, an `mx.array` where they are learned from."""

FACT_QUESTIONS = ("price", "has_item", "opens", "closes", "hours", "address", "ask_name", "ask_company")
NEEDED = ("greet", "ask_name", "price", "address")
"""What every agent's voice must have clips of, for its role prompts to hold facts that it can say."""

MOST_DRAWS = 5_000
"""Questions that are drawn before a bank is said to hold none that can be answered."""

TELLS = tuple(f"tell_{what}" for what in TOLD)

HEARING_FRAMES = 2
"""From the frame in which a word ends to the column that has heard all its codes."""


@dataclass(frozen=True)
class Composition:
    """What dialogues are like. Shares are probabilities, delays and gaps are in frames.

    The text of what an agent says is `text_lead` frames ahead of its sound, so that the pieces of a word are there
    before it is heard; `answer_delay` is that of the text, now and then a later one: who was not sure whether the user
    had finished may still answer. A call is of one of two kinds. In `natural` calls the agent says synthesised clips,
    whose sound is learned from; of their text, what begins an answer, and the rest `natural_text` times as much as
    elsewhere: a clip's first codes tell its last word. In a share of them, `unasked`, it says anything, so that the
    sound has to be read from the text and cannot be guessed from what was asked; there no word is learned. In the
    others it says the model's own clips (`own_voice`), whose text is learned from and whose sound is not. In `eager`
    calls the user speaks before a service role has greeted.
    """

    n_frames: int = 512
    context: int = 375
    service: float = 0.65
    no_role: float = 0.02
    fact_questions: float = 0.65
    unknown_facts: float = 0.2
    tells: float = 0.08
    recalls: float = 0.35
    natural: float = 0.42
    natural_text: float = 0.0
    unasked: float = 0.4
    eager: float = 0.1
    pinned: float = 0.5
    noisy: float = 0.45
    interruptions: float = 0.2
    backchannels: float = 0.15
    not_speech: float = 0.1
    long_silence: float = 0.05
    quiet_calls: float = 0.06
    wrong_codes: float = 0.3
    answer_delay: tuple[int, ...] = (*[3] * 14, *[4] * 3, *[6] * 3)
    text_lead: int = 2
    stop_delay: tuple[int, ...] = (3, 4, 4)
    longest_prompt: int = 100
    quiet_frames: float = 0.12
    audio_frames: float = 0.3
    heard_words: int = 36


class Batch(NamedTuple):
    """One step's dialogues.

    `frames` [B, 17, T], `pinned` [B] columns of the prompt that stay in view, `text_weight` and `fact` [B, T];
    `audio_at` [K] are the columns (b T + t) whose codes count, with `audio_weight` [K, 8]; `heard_at` [H] are columns
    that have heard a word and `heard` [H] its index in the bank's vocabulary, -1 for none.
    """

    frames: Array
    pinned: Array
    text_weight: Array
    fact: Array
    audio_at: Array
    audio_weight: Array
    heard_at: Array
    heard: Array


class Composer:
    """Draws dialogues from a bank; `words` are those that its users say.

    Raises TrainingError when the bank lacks a kind of clip altogether.
    """

    def __init__(self, bank: Bank, tokenizer: Tokenizer, config: Composition, seed: int) -> None:
        self.bank, self.tokenizer, self.config, self.seed = bank, tokenizer, config, seed
        clips = bank.index()
        self._tokens: dict[str, list[int]] = {}
        said = np.unique(bank.words[np.repeat(bank.voices < 0, np.diff(bank.word_begins)), 0])
        self.words = [bank.vocabulary[word] for word in said]
        self._heard_as = np.full(len(bank.vocabulary), -1)
        self._heard_as[said] = np.arange(len(said))
        users = {intent: keys for (voice, intent), keys in clips.items() if voice == -1}
        self._beds = users.pop("bed", {}).get((), [])
        self._sounds = users.pop("sound", {}).get((), [])
        self._backchannels = users.pop("backchannel", {}).get((), [])
        self._users = {intent: (list(keys), keys) for intent, keys in users.items()}
        self._voices = sorted({voice for voice, _ in clips if voice >= 0})
        if not (self._voices and self._users and self._beds and self._sounds and self._backchannels):
            raise TrainingError("the clip bank lacks agents, users, sounds, backgrounds or backchannels; make it anew")
        own = bank.index(own=True) if config.natural < 1 else {}
        if config.natural < 1 and not own:
            raise TrainingError(
                "the clip bank holds nothing that a model said itself; give what `personaplex train own` made as well, "
                "or set composition.natural to 1"
            )
        self._said = {natural: _said(of, self._voices) for natural, of in ((True, clips), (False, own)) if of}
        synthesised = np.array(bank.kinds) == "agent"
        self._lines = {v: np.flatnonzero(synthesised & (bank.voices == v)).tolist() for v in self._voices}
        self.beginnings = Beginnings(bank, np.flatnonzero(np.array(bank.kinds) == OWN), config.text_lead)
        self._general = _Weighted([i for i in self._users if i not in FACT_QUESTIONS])
        self._asked = _Weighted([i for i in self._users if i in FACT_QUESTIONS])

    @property
    def first_pieces(self) -> list[int]:
        """The first text piece of each of `words`."""
        return [self.tokens(word)[0] for word in self.words]

    def tokens(self, word: str) -> list[int]:
        """A word's text pieces."""
        if word not in self._tokens:
            self._tokens[word] = self.tokenizer.tokens(word)
        return self._tokens[word]

    def batch(self, step: int, size: int) -> Batch:
        """The batch of a step, as NumPy arrays (a process that makes batches does not touch the device)."""
        c = self.config
        talks = [self.dialogue(np.random.default_rng([self.seed, step, i])) for i in range(size)]
        rng = np.random.default_rng([self.seed, step, size])
        at, weight = self._audio(rng, talks, int(c.audio_frames * size * c.n_frames))
        heard_at, heard = self._heard(rng, talks, c.heard_words * size)
        return Batch(
            np.stack([talk.frames for talk, _ in talks]),
            np.array([talk.pinned for talk, _ in talks], np.int32),
            np.stack([talk.text_weight for talk, _ in talks]),
            np.stack([talk.fact for talk, _ in talks]),
            at,
            weight,
            heard_at,
            heard,
        )

    def _audio(
        self, rng: np.random.Generator, talks: list[tuple[Timeline, int]], n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Columns to speak in: those of speech, some of silence. A column holds its frame's semantic code and the
        acoustic codes of the frame before."""
        natural = np.array([[talk.natural] for talk, _ in talks])
        speech, stopping = (np.stack([getattr(talk, name) for talk, _ in talks]) for name in ("speech", "stopping"))
        talking = np.stack([np.arange(talk.n_frames) >= start for talk, start in talks])
        quiet = stopping | (rng.random(speech.shape) < self.config.quiet_frames)
        counts = np.where(speech, natural, quiet) * talking * 1.0
        before = np.pad(counts[:, :-1], [(0, 0), (1, 0)])
        wanted = np.maximum(counts, before).reshape(-1)
        order = np.argsort(-wanted - rng.random(wanted.size) * 0.5)[:n]
        acoustic = np.repeat(before.reshape(-1)[order][:, None], N_CODEBOOKS - 1, axis=1)
        return order.astype(np.int32), np.concatenate([counts.reshape(-1)[order][:, None], acoustic], axis=1).astype(
            np.float32
        )

    @staticmethod
    def _heard(rng: np.random.Generator, talks: list[tuple[Timeline, int]], n: int) -> tuple[np.ndarray, np.ndarray]:
        heard = [(b * talk.n_frames + frame, word) for b, (talk, _) in enumerate(talks) for frame, word in talk.heard]
        chosen = rng.permutation(len(heard))[:n]
        at, words = np.zeros(n, np.int32), np.full(n, -1, np.int32)
        for place, i in enumerate(chosen):
            at[place], words[place] = heard[i]
        return at, words

    def dialogue(self, rng: np.random.Generator) -> tuple[Timeline, int]:
        """One call, and the frame in which the talk begins."""
        return _Call(self, rng).compose()


Said = dict[tuple[int, str], tuple[list[Key], dict[Key, list[int]]]]
"""What agents say by (voice, intent): the keys, and the clips of each."""


def _said(index: Index, voices: list[int]) -> Said:
    """The agents' half of an index. Raises TrainingError where a voice cannot say what all must."""
    for voice in voices:
        if lacking := [intent for intent in NEEDED if (voice, intent) not in index]:
            raise TrainingError(f"the clip bank's agent {voice} says no {lacking[0]!r}; make it with more agent_lines")
    return {at: (list(keys), keys) for at, keys in index.items() if at[0] >= 0}


class Reply(NamedTuple):
    """What an agent says: a clip, and the line in it."""

    clip: int
    line: Line


class _Weighted:
    """Intents, each as likely as the dialogue's plan has it."""

    def __init__(self, intents: list[str]) -> None:
        self._intents = intents
        self._ends = np.cumsum([WEIGHTS[intent] for intent in intents])

    def draw(self, rng: np.random.Generator) -> str:
        return self._intents[int(np.searchsorted(self._ends, rng.random() * self._ends[-1], "right"))]


class _Call:
    """One dialogue in the making."""

    def __init__(self, composer: Composer, rng: np.random.Generator) -> None:
        self.composer, self.rng, self.config, self.bank = composer, rng, composer.config, composer.bank
        self.voice = int(rng.choice(composer._voices))
        self.natural = bool(rng.random() < self.config.natural)
        self.unasked = bool(self.natural and rng.random() < self.config.unasked)
        self.memory: Memory = {}
        self.told: list[str] = []
        self.facts, self.greeting, tokens = self._role()
        if self.unasked and self.greeting is not None:
            self.greeting = self._anything()
        noisy = rng.random() < self.config.noisy
        background = self._background(noisy)
        self.line = Timeline(self.config.n_frames, self.bank.silence, background, natural=self.natural)
        self.start = self.line.prompt(self._voice_prompt(), tokens, SPACER_FRAMES, self.bank.sine)
        self.line.pinned = self.start if self.rng.random() < self.config.pinned else 0
        self.noisy = noisy
        if not noisy:
            self.line.user(self.bank.start, self.start)

    def _pick(self, values: list[int]) -> int:
        return values[self.rng.integers(len(values))]

    def _clips(self, intent: str) -> tuple[list[Key], dict[Key, list[int]]]:
        return self.composer._said[self.natural].get((self.voice, intent), ([], {}))

    def _key(self, intent: str) -> Key:
        keys, _ = self._clips(intent)
        return keys[self.rng.integers(len(keys))]

    def _reply(self, clip: int) -> Reply:
        return Reply(clip, Line(*self.bank.lines[clip]))  # type: ignore[misc]

    def _anything(self) -> Reply:
        return self._reply(self._pick(self.composer._lines[self.voice]))

    def _role(self) -> tuple[Facts, Reply | None, list[int]]:
        """Facts that this voice can say, the greeting of a service role, and the tokens of the role prompt."""
        rng = self.rng
        if rng.random() < self.config.no_role:
            return Facts(), None, []
        while True:
            if rng.random() < self.config.service:
                facts, greeting = self._service()
                text = role_prompt(rng, facts, "train")
            else:
                facts, greeting = Facts(name=self._key("ask_name")[0] if rng.random() < 0.5 else None), None
                text = assistant_prompt(rng, facts.name, "train")
            tokens = self.composer.tokenizer.role_tokens(text)
            if len(tokens) <= self.config.longest_prompt:
                return facts, greeting, tokens

    def _service(self) -> tuple[Facts, Reply]:
        """The shape of drawn facts (which are given, how many), filled with values that this voice has clips of."""
        shape = sample_facts(self.rng, "train")
        greeting = self._reply(self._greeting(*self._clips("greet")))
        name, company = greeting.line.key
        prices: dict[str, str] = dict(self._key("price") for _ in shape.prices)  # type: ignore[misc]
        opens, closes = self._key("hours") if self._clips("hours")[0] else (None, None)
        facts = Facts(
            name=name,
            company=company,
            business=shape.business,
            prices=tuple(prices.items()),
            opens=opens if shape.opens else None,
            closes=closes if shape.closes else None,
            address=self._key("address")[0] if shape.address else None,
        )
        return facts, greeting

    def _background(self, noisy: bool) -> np.ndarray:
        n = self.config.n_frames
        if not noisy:
            return np.repeat(self.bank.silence[None], n, axis=0)
        bed = self.bank.clip(self._pick(self.composer._beds))
        return np.concatenate([bed] * (n // len(bed) + 2))[self.rng.integers(len(bed)) :][:n]

    def _voice_prompt(self) -> np.ndarray:
        # In every call that of the synthesiser, as in use.
        greetings, n_frames = self.composer._said[True][self.voice, "greet"], int(self.rng.integers(22, 38))
        return self.bank.stretch((self._greeting(*greetings) for _ in count()), n_frames)

    def _greeting(self, keys: list[Key], clips: dict[Key, list[int]]) -> int:
        return self._pick(clips[keys[self.rng.integers(len(keys))]])

    def compose(self) -> tuple[Timeline, int]:
        """Talk until the frames are full."""
        rng, c = self.rng, self.config
        at, interrupting = self.start, False
        nobody = rng.random() < c.quiet_calls
        if self.greeting is not None and not nobody and rng.random() < c.eager:
            at, interrupting = self.start + int(rng.integers(3)), True
        elif self.greeting is not None:
            begin = self.start + int(rng.integers(3, 9))
            end = self._agent(self.greeting, begin)
            at, interrupting = (end, False) if nobody else self._after(begin, end)
        while at < c.n_frames - 12:
            if not interrupting:
                at += int(rng.integers(30, 90) if nobody or rng.random() < c.long_silence else rng.integers(3, 15))
            if nobody or (not interrupting and rng.random() < c.not_speech):
                at = self._not_speech(at)
            else:
                at, interrupting = self._exchange(at, interrupting)
        return self.line, self.start

    def _not_speech(self, at: int) -> int:
        """One sound or more, or a backchannel to nothing: the agent stays quiet. Returns the frame after."""
        rng, composer = self.rng, self.composer
        if rng.random() < 0.3:
            at = self._heard_only(self._pick(composer._backchannels), at)
        else:
            for _ in range(int(rng.integers(1, 4))):
                at = self._heard_only(self._pick(composer._sounds), at) + int(rng.integers(5, 40))
        self.line.decide(at, at + 12)
        return at

    def _heard_only(self, clip: int, at: int) -> int:
        """Place a clip of the user's stream and the silence after it; returns the first frame after the clip."""
        codes, rng = self.bank.clip(clip), self.rng
        if rng.random() < self.config.wrong_codes:
            # Another microphone, another codec: now and then a frame sounds like something else.
            codes = codes.copy()
            wrong = rng.random(len(codes)) < 0.07
            codes[wrong] = self.bank.codes[rng.integers(len(self.bank.codes), size=int(wrong.sum()))]
        end = self.line.user(codes, at)
        if not self.noisy:
            self.line.user(self.bank.ring(clip), end)
        return end

    def _exchange(self, at: int, interrupting: bool) -> tuple[int, bool]:
        """One thing said by the user from frame `at` and its answer; returns where the talk goes on, and how."""
        user, reply = self._question(at)
        line = Line(*self.bank.lines[user])  # type: ignore[misc]
        silent_from = self._user(user, at)
        begin = silent_from + int(self.rng.choice(self.config.answer_delay))
        if not interrupting:
            self.line.decide(max(at, silent_from - 3), begin)
        end = self._agent(reply, begin)
        remember(self.memory, line, reply.line)
        if line.intent.startswith("tell_"):
            self.told.append("recall_" + line.intent.removeprefix("tell_"))
        self.last = reply
        return self._after(begin, end)

    def _after(self, begin: int, end: int) -> tuple[int, bool]:
        """What the user does while the agent speaks: listens, says "mm hmm", or interrupts."""
        rng, c = self.rng, self.config
        if end - begin < 10 or end >= c.n_frames:
            return end, False
        drawn = rng.random()
        if drawn < c.interruptions:
            at = int(rng.integers(begin + 4, end - 3))
            self.line.interrupt(min(at + int(rng.choice(c.stop_delay)), end))
            return at, True
        if drawn < c.interruptions + c.backchannels:
            at = int(rng.integers(begin + 3, end - 3))
            return max(end, self._heard_only(self._pick(self.composer._backchannels), at)), False
        return end, False

    def _question(self, at: int) -> tuple[int, Reply]:
        """A user's clip for frame `at`, and what answers it in this voice."""
        composer, rng, c = self.composer, self.rng, self.config
        forgotten = not self.line.pinned and at + 30 > c.context + 30
        for _ in range(MOST_DRAWS):
            share = c.fact_questions if self.facts.company else 0.1
            pool = composer._asked if not forgotten and rng.random() < share else composer._general
            intent = TELLS[rng.integers(len(TELLS))] if rng.random() < c.tells else pool.draw(rng)
            if self.told and rng.random() < c.recalls:
                intent = self.told.pop()
            if intent not in composer._users:
                continue
            keys, clips = composer._users[intent]
            key = keys[rng.integers(len(keys))]
            if intent in ("price", "has_item") and self.facts.prices and rng.random() < 0.85:
                key = (self.facts.prices[rng.integers(len(self.facts.prices))][0],)
            answer = answer_key(intent, key, self.facts, self.memory)
            if answer is None or key not in clips:
                continue
            if answer.intent in ("unknown_fact", "not_told") and rng.random() > c.unknown_facts:
                continue
            user = self._pick(clips[key])
            if self.unasked:
                return user, self._anything()
            if intent == "again" and "last" in self.memory:
                return user, self.last
            if replies := self._clips(answer.intent)[1].get(answer.key):
                return user, self._reply(self._pick(replies))
        raise TrainingError(
            f"the clip bank's agent {self.voice} has no answer to what its users say; make it with more user_clips"
        )

    def _user(self, clip: int, at: int) -> int:
        """Place a user's clip and note its words; returns the first frame after the last word."""
        self._heard_only(clip, at)
        first, last = self.bank.pauses[clip]
        if last > first:
            self.line.decide(at + int(first), at + int(last) + 1)
        words = self.bank.words_of(clip)
        for word, _, last, _ in words:
            self.line.hear(at + int(last) + HEARING_FRAMES, int(self.composer._heard_as[word]))
        return int(at + words[-1, 2] + 1)

    def _agent(self, reply: Reply, at: int) -> int:
        """Say an agent's line, text first, from frame `at`; returns the frame after."""
        facts, bank = set(key_words(reply.line)), self.bank
        words = [(bank.vocabulary[word], first) for word, first, *_ in bank.words_of(reply.clip).tolist()]
        codes = bank.clip(reply.clip)
        if not self.natural:
            parted = [i for i, (word, _) in enumerate(words) if word in facts]
            codes = self.composer.beginnings.say(self.rng, reply.clip, parted)
        end = self.line.agent(codes, at + self.config.text_lead)
        for word, first in words:
            self.line.word(self.composer.tokens(word), at + first, fact=word in facts)
        if self.natural:
            # Of an answer's text, how it begins comes before any sound of it.
            known = 0 if self.unasked else len(self.composer.tokens(words[0][0]))
            self.line.trust(at + known, end, 0.0 if self.unasked else self.config.natural_text)
        return end


@dataclass(frozen=True)
class ComposerFiles:
    """Where a process that makes batches finds what it needs."""

    bank: Path
    tokenizer: Path
    n_pieces: int
    config: Composition
    seed: int
    size: int

    def __call__(self) -> _Batches:
        """Open the bank and the tokenizer."""
        tokenizer = Tokenizer(self.tokenizer, self.n_pieces)
        return _Batches(Composer(Bank.read(self.bank), tokenizer, self.config, self.seed), self.size)


@dataclass(frozen=True)
class _Batches:
    composer: Composer
    size: int

    def __call__(self, step: int) -> Batch:
        return self.composer.batch(step, self.size)
