"""A trained model says agents' lines itself: what it will hear of itself when it talks.

The sound of a synthesiser's clip tells from its first codes on how the line ends, and a model that learns its text
beside such sound reads it there (docs/log.md). Here the text is given, word by word at the times a voice takes for
them, and the model draws the sound: it knows no more of the line than the `text_lead` frames by which text precedes
sound, so nothing of it can tell what is still to be said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from personaplex.checkpoint.load import load_lm
from personaplex.config import LMConfig, MimiConfig, ModelConfig, QuantizerConfig, from_json
from personaplex.dialogue import Line, own_plan, role_prompt, sample_facts
from personaplex.engine.generator import Generator, GeneratorState
from personaplex.engine.prompt import compose
from personaplex.engine.sampling import Ceiling, Sampling
from personaplex.errors import TrainingError
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import AGENT, N_STREAMS, TEXT, UNGENERATED
from personaplex.nn.state import stack
from personaplex.text import PAD, Tokenizer
from personaplex.train.bank import OWN, Bank
from personaplex.train.clips import TAIL_FRAMES
from personaplex.train.compose import Composition
from personaplex.train.pace import Pace, Timed
from personaplex.train.timeline import Timeline
from personaplex.units import N_CODEBOOKS
from personaplex.voice import Voice

LEAD_IN = 4
"""Frames from the end of the prompt to the first word's text."""

RINGING = 2
"""Frames that are kept beyond a clip's: the model may end a little later than the synthesiser."""

PROMPTS = 4
"""Voice and role prompts of each voice; a line is said after one of them."""

NOISY = 0.3
"""Share of lines that are said while there is a noise on the user's side."""


@dataclass(frozen=True)
class OwnLines:
    """How lines are said: with which sampling, how many at a time, how far the text is ahead of the sound.

    `lines` are said beside those that the bank's agents say: new ones, with times drawn from each voice's pace.
    """

    lines: int = 4_000
    invented: float = 0.5
    audio_temperature: float = 0.7
    audio_top_k: int = 250
    text_lead: int = Composition.text_lead
    batch: int = 256
    compile: bool = False
    seed: int = 1


class Script(NamedTuple):
    """A line to be said, and when: `words` from the frame in which its sound begins, `frames` in all."""

    voice: int
    line: Line
    words: list[Timed]
    frames: int


def scripts(bank: Bank, config: OwnLines) -> list[Script]:
    """Every line of the bank's agents as fast as it was recorded, and `lines` more a voice; the shortest first.

    Raises TrainingError when the bank has no agents.
    """
    agents = np.flatnonzero(np.array(bank.kinds) == "agent").tolist()
    if not agents:
        raise TrainingError("the bank holds no clip of an agent; make clips with agent_lines above 0")
    made = []
    for clip in agents:
        times = [Timed(first, last, phase) for _, first, last, phase in bank.words_of(clip).tolist()]
        line = Line(*cast(tuple[str, tuple[str, ...], str], bank.lines[clip]))
        made.append(Script(int(bank.voices[clip]), line, times, len(bank.clip(clip)) + RINGING))
    pace = Pace(bank, agents)
    for voice in sorted({script.voice for script in made}):
        rng = np.random.default_rng([config.seed, 1, voice])
        for line in own_plan(rng, config.lines, config.invented):
            times, end = pace.timed(rng, voice, line.text)
            made.append(Script(voice, line, times, end + TAIL_FRAMES + RINGING))
    return sorted(made, key=lambda script: script.frames)


def text_of(script: Script, tokenizer: Tokenizer, n_frames: int) -> np.ndarray:
    """The text tokens [n_frames] of a script, as in training: a word `LEAD_IN` frames later, EPAD before it."""
    line = Timeline(n_frames, np.zeros(N_CODEBOOKS), np.zeros((n_frames, N_CODEBOOKS)))
    for word, time in zip(script.line.text.split(), script.words, strict=True):
        line.word(tokenizer.tokens(word), LEAD_IN + time.first, fact=False)
    return cast(np.ndarray, line.frames[TEXT])


class OwnVoice:
    """A model that says lines in a bank's voices. `bank` gives the voices, silence and background noise.

    Raises TrainingError when the model has other codes than the bank.
    """

    def __init__(self, lm: LanguageModel, tokenizer: Tokenizer, bank: Bank, config: OwnLines) -> None:
        if (most := int(bank.codes.max())) >= lm.config.card:
            raise TrainingError(
                f"the bank holds the code {most}, but lm.card is {lm.config.card}: another codec made it"
            )
        self._bank, self._tokenizer, self._config = bank, tokenizer, config
        # Nothing is decoded here: of the codec only the size of its codebooks matters.
        mimi = MimiConfig(quantizer=QuantizerConfig(bins=lm.config.card))
        silence, sine = (tuple(codes.tolist()) for codes in (bank.silence, bank.sine))
        self._generator = Generator(lm, ModelConfig(lm=lm.config, mimi=mimi, silence_codes=silence, sine_codes=sine))
        self._sampling = Sampling(
            text_temperature=0.0, audio_temperature=config.audio_temperature, audio_top_k=config.audio_top_k
        )
        ceiling, generator = Ceiling.over(self._sampling), self._generator

        def step(user: mx.array, text: mx.array, state: GeneratorState) -> tuple[mx.array, GeneratorState]:
            free = mx.full((len(text), N_STREAMS - 1), UNGENERATED, mx.int32)
            result, after = generator.step(user, state, ceiling, mx.concatenate([text[:, None], free], axis=1))
            return result.tokens[:, AGENT], after

        self._step = mx.compile(step) if config.compile else step
        self.batch = config.batch
        self._beds = np.flatnonzero(np.array(bank.kinds) == "bed").tolist()
        self._voices = sorted(set(bank.voices[bank.voices >= 0].tolist()))
        self._prompted = self._read_prompts()

    def _read_prompts(self) -> GeneratorState:
        """What the model made of every prompt: slots `PROMPTS` a voice, in the voices' order."""
        index, states = self._bank.index(), []
        for voice in self._voices:
            rng = np.random.default_rng([self._config.seed, 2, voice])
            greetings = [clip for clips in index.get((voice, "greet"), {}).values() for clip in clips]
            if not greetings:
                raise TrainingError(f"the bank's agent {voice} greets nobody; make it with more agent_lines")
            for _ in range(PROMPTS):
                drawn = (greetings[rng.integers(len(greetings))] for _ in count())
                codes = self._bank.stretch(drawn, int(rng.integers(22, 38)))
                role = self._tokenizer.role_tokens(role_prompt(rng, sample_facts(rng, "train"), "train"))
                prompt = compose(self._generator.config, Voice(str(voice), codes=codes), role)
                _, state = self._generator.begin(self._generator.read(prompt), sampling=self._sampling)
                # What was drawn after the prompt: now nothing is said yet.
                column = mx.concatenate([mx.full((1, 1), PAD, mx.int32), state.column[:, 1:]], axis=1)
                states.append(state._replace(column=column))
                mx.eval(states[-1])  # one by one: launches that wait for each other's blocks must not meet in one graph
        prompted = stack(states)
        mx.eval(prompted)
        return prompted

    def say(self, said: Sequence[Script], numbers: Sequence[int]) -> list[np.ndarray]:
        """Codes [frames, 8] of each script. What is drawn for one depends on its number and nobody beside it."""
        n_frames = LEAD_IN + self._config.text_lead + max(script.frames for script in said)
        text = np.stack([text_of(script, self._tokenizer, n_frames + 1) for script in said])
        drawn = [np.random.default_rng([self._config.seed, 3, number]) for number in numbers]
        user = np.stack([self._user(rng, n_frames) for rng in drawn])
        slots = [
            self._voices.index(s.voice) * PROMPTS + int(rng.integers(PROMPTS))
            for s, rng in zip(said, drawn, strict=True)
        ]
        keys = np.stack([rng.integers(1 << 32, size=2, dtype=np.uint32) for rng in drawn])
        at = mx.array(slots)
        state: GeneratorState = tree_map(lambda leaf: mx.take(leaf, at, axis=0), self._prompted)
        state = state._replace(key=mx.array(keys))
        texts, users = mx.array(text), mx.array(user.astype(np.int32))
        codes: list[mx.array] = []
        for frame in range(n_frames):
            sound, state = self._step(users[:, frame], texts[:, frame + 1], state)
            mx.async_eval(sound, state)  # type: ignore[no-untyped-call]
            if codes:
                mx.eval(codes[-1])  # no more than one frame ahead
            codes.append(sound)
        found, begin = np.array(mx.stack(codes, axis=1).astype(mx.uint16)), LEAD_IN + self._config.text_lead
        return [row[begin : begin + script.frames] for row, script in zip(found, said, strict=True)]

    def bank_of(self, said: Sequence[Script], codes: Sequence[np.ndarray]) -> Bank:
        """Scripts and their codes as clips of kind "own"."""
        texts = [script.line.text.split() for script in said]
        vocabulary = sorted({word for text in texts for word in text})
        number = {word: i for i, word in enumerate(vocabulary)}
        words = [
            (number[word], *time)
            for text, script in zip(texts, said, strict=True)
            for word, time in zip(text, script.words, strict=True)
        ]
        return replace(
            self._bank,
            codes=np.concatenate(codes) if codes else np.zeros((0, N_CODEBOOKS), np.uint16),
            begins=np.cumsum([0, *map(len, codes)]),
            kinds=[OWN] * len(said),
            voices=np.array([script.voice for script in said], np.int16),
            lines=[(script.line.intent, script.line.key, script.line.text) for script in said],
            rings=np.zeros(len(said), np.int64),
            pauses=np.zeros((len(said), 2), np.int64),
            words=np.array(words, np.int64).reshape(-1, 4),
            word_begins=np.cumsum([0, *map(len, texts)]),
            vocabulary=vocabulary,
        )

    def _user(self, rng: np.random.Generator, n_frames: int) -> np.ndarray:
        bank = self._bank
        if self._beds and rng.random() < NOISY:
            bed = bank.clip(self._beds[rng.integers(len(self._beds))])
            return np.concatenate([bed] * (n_frames // len(bed) + 2))[rng.integers(len(bed)) :][:n_frames]
        quiet = np.repeat(bank.silence[None], n_frames, axis=0)
        return np.concatenate([bank.start, quiet])[:n_frames]


def load_speaker(folder: Path) -> LanguageModel:
    """The language model of a model's folder, or of the run that trained one.

    Raises CheckpointError for weights that do not fit, TrainingError where there is neither.
    """
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))["lm"]
        config = from_json(LMConfig, about, str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{folder} is neither a model nor a run that trained one: {error}") from error
    return load_lm(folder / "model.safetensors", config, dtype=mx.float32)


def say_lines(
    voice: OwnVoice, said: Sequence[Script], say: Callable[[str], None], part: int = 0, parts: int = 1
) -> Bank:
    """The clips of a model's own voice: every script, or one of `parts` shares of them."""
    size = voice.batch
    batches = [range(at, min(at + size, len(said))) for at in range(0, len(said), size)][part::parts]
    done, codes = [], []
    for number, batch in enumerate(batches, 1):
        # The last one is filled up: another shape would be another compilation.
        numbers = [*batch, *[batch[-1]] * (size - len(batch))]
        codes += voice.say([said[i] for i in numbers], numbers)[: len(batch)]
        done += [said[i] for i in batch]
        if number % 20 == 0 or number == len(batches):
            say(f"own: {len(done)} lines")
    return voice.bank_of(done, codes)
