"""Lines in a model's own voice: the forced text at the forced times, codes that are its own and know no more."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_map

from personaplex.checkpoint.save import save_lm
from personaplex.cli.main import program
from personaplex.config import ModelConfig
from personaplex.dialogue import VALUES, own_plan
from personaplex.dialogue.world import HELDOUT
from personaplex.engine.generator import Generator
from personaplex.engine.prompt import SPACER_FRAMES, Prompt, compose
from personaplex.errors import TrainingError
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import AGENT, TEXT
from personaplex.text import EPAD, PAD, Tokenizer
from personaplex.train import own_voice
from personaplex.train.bank import OWN, Bank, join
from personaplex.train.init import initialise
from personaplex.train.lm import LMTraining
from personaplex.train.own_voice import (
    LEAD_IN,
    OwnLines,
    OwnVoice,
    Script,
    load_speaker,
    say_lines,
    scripts,
    text_of,
)
from personaplex.train.pace import Pace, Timed
from personaplex.train.timeline import Timeline
from personaplex.voice import Voice
from tests.unit.test_train_lm import SMALL, TOKENIZER, toy_bank

CONFIG = OwnLines(lines=30, batch=8)
TOKENS = Tokenizer(TOKENIZER, 320)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return toy_bank(voices=2, users=50, own=False)


@pytest.fixture(scope="module")
def said(bank: Bank) -> list[Script]:
    return scripts(bank, CONFIG)


@pytest.fixture(scope="module")
def voice(bank: Bank) -> OwnVoice:
    return OwnVoice(initialise(LanguageModel(SMALL, 8), seed=1), TOKENS, bank, CONFIG)


def test_every_line_is_said_as_fast_as_it_was_recorded_and_new_ones_too(bank: Bank, said: list[Script]) -> None:
    agents = [clip for clip, kind in enumerate(bank.kinds) if kind == "agent"]
    assert len(said) == len(agents) + 2 * CONFIG.lines
    recorded = {(int(bank.voices[clip]), bank.lines[clip]): bank.words_of(clip)[:, 1].tolist() for clip in agents}
    as_clips = [s for s in said if (s.voice, (s.line.intent, s.line.key, s.line.text)) in recorded]
    assert len(as_clips) >= len(agents)
    for script in said:
        assert [time.first for time in script.words] == sorted(time.first for time in script.words)
        assert script.words[-1].last < script.frames
    script = next(s for s in said if s.line.text == "the answer is forty" and s.voice == 1)
    assert [time.first for time in script.words] == [0, 3, 9, 11]


def test_nothing_new_is_a_held_out_value() -> None:
    held, lines = VALUES["heldout"], own_plan(np.random.default_rng(0), 6_000, 0.5)

    def values(intents: tuple[str, ...], part: int) -> set[str]:
        return {line.key[part] for line in lines if line.intent in intents}

    assert not values(("greet", "ask_name", "tell_name", "recall_name"), 0) & {*held.names}
    assert not (values(("greet",), 1) | values(("ask_company",), 0)) & {*held.companies}
    assert not values(("opens", "hours"), 0) & {*held.opens} and not values(("closes", "hours"), -1) & {*held.closes}
    assert not values(("price",), 1) & {*held.prices}
    streets = {address.split()[-2] for address in values(("address",), 0)}
    assert len(streets) > 100 and not streets & {*held.streets}
    assert not {line.key for line in lines if line.intent == "hours"} & {tuple(pair) for pair in HELDOUT["hours"]}
    names = [line.key[0] for line in lines if line.intent == "ask_name"]
    assert 0.3 < np.mean([name not in VALUES["train"].names for name in names]) < 0.7


def test_a_word_takes_as_long_as_the_voice_once_took_for_it(bank: Bank) -> None:
    """In the toy bank a word takes a frame a letter, and begins as many 16ths of a frame late as it has letters."""
    pace, rng = Pace(bank, [clip for clip, kind in enumerate(bank.kinds) if kind == "agent"]), np.random.default_rng(0)
    for _ in range(20):
        words, end = pace.timed(rng, 0, "the answer is forty")
        begins = [time.first for time in words] + [end]
        lasted = np.diff(begins)
        assert (np.abs(lasted - [3, 6, 2, 5]) <= 1).all()
        assert all(time.last >= time.first for time in words)
    assert abs(pace.steps(rng, 0, "q" * 40, final=True) / 16 - 40) < 4, "nobody said a word as long"
    known = {pace.steps(rng, 0, "is", final=False) for _ in range(200)}
    assert len(known) > 2, "not always the same"


def test_text_is_laid_out_as_in_training() -> None:
    line = next(line for line in own_plan(np.random.default_rng(0), 50, 0.0) if line.intent == "ask_name")
    n = len(line.text.split())
    script = Script(0, line, [Timed(12 * i, 12 * i + 3, 0) for i in range(n)], 12 * n)
    text = text_of(script, TOKENS, LEAD_IN + 12 * n).tolist()
    for i, word in enumerate(line.text.split()):
        tokens, at = TOKENS.tokens(word), LEAD_IN + 12 * i
        assert text[at - 1] == EPAD and text[at : at + len(tokens)] == tokens
        assert set(text[at + len(tokens) : at + 11]) == {PAD}


def test_the_model_hears_the_forced_text_at_the_forced_times(
    voice: OwnVoice, said: list[Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[np.ndarray] = []
    step = Generator.step

    def watched(self: Generator, *given: mx.array) -> object:
        result, after = step(self, *given)  # type: ignore[arg-type]
        heard.append(np.array(result.tokens[:, TEXT]))
        return result, after

    monkeypatch.setattr(Generator, "step", watched)
    few = said[40:43]
    codes = voice.say(few, [40, 41, 42])
    texts = np.stack(heard, axis=1)
    for text, script, sound in zip(texts, few, codes, strict=True):
        np.testing.assert_array_equal(text, text_of(script, TOKENS, len(text)))
        assert sound.shape == (script.frames, 8) and sound.max() < SMALL.card
    assert len(texts[0]) == LEAD_IN + CONFIG.text_lead + max(script.frames for script in few)


def test_a_number_decides_what_is_drawn_and_no_neighbour(voice: OwnVoice, said: list[Script]) -> None:
    script = said[200]
    first, again, other = voice.say([script] * 3, [7, 7, 8])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # Another batch, in another order, with longer lines: the same.
    beside = voice.say([said[900], script], [3, 7])[1]
    np.testing.assert_array_equal(first, beside)


def test_what_is_still_to_be_said_changes_nothing(voice: OwnVoice, said: list[Script]) -> None:
    """Two lines that part at a word sound alike until two frames before it, and not after."""
    pair = [s for s in said if s.voice == 0 and s.line.text.startswith("the answer is ")][:2]
    pair = [s._replace(words=pair[0].words[: len(s.words)]) for s in pair]
    parted = pair[0].words[3].first - CONFIG.text_lead
    one, other = voice.say(pair, [5, 5])
    np.testing.assert_array_equal(one[:parted], other[:parted])
    n = min(map(len, (one, other)))
    assert not np.array_equal(one[parted:n], other[parted:n])


def test_what_was_drawn_is_what_training_predicts(
    bank: Bank, said: list[Script], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said greedily, every code of a clip is the likeliest one where a training call has it, and not a frame off."""
    prompts: list[tuple[Voice, list[int]]] = []
    heard: list[np.ndarray] = []
    step = Generator.step

    def noted(config: ModelConfig, voice: Voice, role: list[int]) -> Prompt:
        prompts.append((voice, role))
        return compose(config, voice, role)

    def watched(self: Generator, *given: mx.array) -> object:
        result, after = step(self, *given)  # type: ignore[arg-type]
        heard.append(np.array(result.tokens[0]))
        return result, after

    monkeypatch.setattr(own_voice, "compose", noted)
    monkeypatch.setattr(own_voice, "PROMPTS", 1)
    monkeypatch.setattr(Generator, "step", watched)
    lm = initialise(LanguageModel(SMALL, 8), seed=1)  # with larger weights, or it says one code for ever
    lm.update(tree_map(lambda weights: 2.5 * weights, lm.parameters()))  # type: ignore[no-untyped-call]
    voice = OwnVoice(lm, TOKENS, bank, replace(CONFIG, audio_temperature=0.0))
    script = next(s for s in said if s.line.text == "the answer is forty" and s.voice == 1)
    (codes,) = voice.say([script], [0])
    assert len(np.unique(codes[:, 0])) > 3

    line = Timeline(400, bank.silence, np.repeat(bank.silence[None], 400, axis=0))
    prompt, role = prompts[1]
    start = line.prompt(np.array(prompt.codes), role, SPACER_FRAMES, bank.sine)
    line.frames[:, start : start + len(heard)] = np.stack(heard, axis=1)
    line.frames[TEXT, start:] = PAD
    begin = start + LEAD_IN + CONFIG.text_lead
    end = line.agent(codes, begin)
    for word, time in zip(script.line.text.split(), script.words, strict=True):
        line.word(TOKENS.tokens(word), start + LEAD_IN + time.first, fact=False)
    columns = lm.columns(mx.array(line.frames[None]))
    z, target = lm.hidden(columns[:, :-1], mx.array([0]))[0], columns[0, 1:]
    spoken = lm.depformer.teacher_forced(z, target[:, TEXT], mx.minimum(target[:, AGENT], SMALL.card - 1))
    likeliest = np.array(mx.argmax(spoken, axis=-1))
    # A column holds its frame's semantic code and the acoustic codes of the frame before. The last one is left out:
    # its acoustic codes were drawn beside a text that is not the clip's.
    n = end - begin - 1
    np.testing.assert_array_equal(likeliest[begin : begin + n, 0], codes[:n, 0])
    np.testing.assert_array_equal(likeliest[begin + 1 : begin + 1 + n, 1:], codes[:n, 1:])
    assert (likeliest[begin + 1 : begin + 1 + n, 0] != codes[:n, 0]).any()


def test_a_team_says_what_one_says(voice: OwnVoice, said: list[Script]) -> None:
    few, quiet = said[300:330], lambda _: None
    alone = say_lines(voice, few, quiet)
    parts = join([say_lines(voice, few, quiet, part, 2) for part in (0, 1)])
    assert set(alone.kinds) == {OWN} and len(alone.kinds) == 30

    def clips(of: Bank) -> dict[object, bytes]:
        return {(of.lines[i], int(of.voices[i])): of.clip(i).tobytes() for i in range(len(of.kinds))}

    assert clips(alone) == clips(parts)
    for clip, script in enumerate(few):
        assert [alone.vocabulary[word] for word in alone.words_of(clip)[:, 0]] == script.line.text.split()
        assert alone.words_of(clip)[:, 1:].tolist() == [list(time) for time in script.words]
        assert len(alone.clip(clip)) == script.frames


def test_a_run_that_trained_a_model_speaks_as_the_model_does(tmp_path: Path) -> None:
    lm = initialise(LanguageModel(SMALL, 8), seed=1)
    save_lm(tmp_path / "model.safetensors", lm)
    with pytest.raises(TrainingError, match="neither a model nor a run"):
        load_speaker(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(asdict(LMTraining(SMALL))))
    loaded = load_speaker(tmp_path)
    assert loaded.config == SMALL
    np.testing.assert_array_equal(np.array(loaded.text_head.weight), np.array(lm.text_head.weight))


def test_a_part_that_is_none_is_refused(tmp_path: Path) -> None:
    given = ["train", "bank", "--clips", str(tmp_path), "--codec", str(tmp_path), "--out", str(tmp_path / "bank.npz")]
    done = CliRunner().invoke(program, [*given, "--part", "3", "3"])
    assert done.exit_code == 2 and "numbered from 0 to 2" in done.output


def test_another_codecs_bank_is_refused(bank: Bank) -> None:
    wide = replace(bank, codes=bank.codes + SMALL.card)
    with pytest.raises(TrainingError, match="another codec made it"):
        OwnVoice(LanguageModel(SMALL, 8), TOKENS, wide, CONFIG)
    mute = replace(bank, kinds=["user"] * len(bank.kinds))
    with pytest.raises(TrainingError, match="no clip of an agent"):
        scripts(mute, CONFIG)
