"""Dialogues composed from clips, and the language model's training, on a toy bank of random codes."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from personaplex.checkpoint.load import load_lm
from personaplex.config import LMConfig
from personaplex.dialogue import Line, agent_plan, answer_key, is_right, user_plan
from personaplex.errors import TrainingError
from personaplex.models.lm import LanguageModel
from personaplex.models.streams import AGENT, TEXT, USER
from personaplex.nn.state import parameters
from personaplex.nn.tables import TokenTables
from personaplex.text import EPAD, PAD, Tokenizer
from personaplex.train.bank import OWN, Bank, join
from personaplex.train.compose import NEEDED, Batch, Composer, Composition, _Call
from personaplex.train.feed import feed
from personaplex.train.init import initialise
from personaplex.train.lm import LMTrainer, LMTraining, losses, train_lm
from personaplex.train.run import Run
from personaplex.train.timeline import Timeline

CARD = 16
WORDS = [4 + i % 300 for i in range(2500)]
"""A first piece for each word that users may say."""
SMALL = LMConfig(
    dim=32, text_card=320, card=CARD, dep_q=8, num_heads=2, num_layers=1, hidden_scale=2.0, context=100,
    depformer_dim=16, depformer_dim_feedforward=32, depformer_num_heads=2, depformer_num_layers=1,
)  # fmt: skip
TOKENIZER = Path(__file__).parents[1] / "fixtures" / "parity" / "tokenizer_spm_32k_3.model"


def toy_bank(voices: int = 1, users: int = 3000, own: bool = True) -> Bank:
    """A bank whose clips hold random codes, 1 frame for every letter or so; `own`: every line as the model's, too."""
    rng = np.random.default_rng(0)
    clips: list[tuple[str, int, Line | None]] = []
    for voice in range(voices):
        for kind in ("agent", OWN)[: 1 + own]:
            clips += [(kind, voice, line) for line in agent_plan(np.random.default_rng(voice))]
    clips += [("user", -1, line) for line in user_plan(rng, users)]
    clips += [("sound", -1, None), ("bed", -1, None)]
    vocabulary = sorted({word for _, _, line in clips if line for word in line.text.split()})
    number = {word: i for i, word in enumerate(vocabulary)}
    words, lengths = [], []
    for _, _, line in clips:
        at, said = 0, []
        for word in line.text.split() if line else []:
            said.append((number[word], at, at + len(word) - 1, len(word) % 16))
            at += len(word)
        words.append(said)
        lengths.append(at + 2 or 20)
    codes = rng.integers(0, CARD, (sum(lengths), 8))
    return Bank(
        codes=codes,
        begins=np.cumsum([0, *lengths]),
        kinds=[kind for kind, _, _ in clips],
        voices=np.array([voice for _, voice, _ in clips]),
        lines=[(line.intent, line.key, line.text) if line else None for _, _, line in clips],
        words=np.array([word for said in words for word in said]).reshape(-1, 4),
        word_begins=np.cumsum([0, *map(len, words)]),
        vocabulary=vocabulary,
        rings=np.zeros(len(clips), int),
        pauses=np.zeros((len(clips), 2), int),
        start=np.full((40, 8), 1),
        silence=np.full(8, 2),
        sine=np.full(8, 3),
    )


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer(toy_bank(), Tokenizer(TOKENIZER, 320), Composition(longest_prompt=400, n_frames=640), seed=5)


def as_arrays(batch: Batch) -> Batch:
    return Batch(*map(mx.array, batch))


def test_a_batch_depends_on_its_step_alone(composer: Composer) -> None:
    again = Composer(composer.bank, composer.tokenizer, composer.config, composer.seed)
    composer.batch(0, 2)
    for first, second in zip(composer.batch(1, 2), again.batch(1, 2), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(composer.batch(1, 2).frames, composer.batch(2, 2).frames)


def test_the_batch_marks_what_counts(composer: Composer) -> None:
    batch = composer.batch(0, 4)
    n_frames = composer.config.n_frames
    assert batch.frames.shape == (4, 17, n_frames)
    assert (batch.text_weight[:, :20] == 0).all(), "the prompt is given, not learned"
    assert len(np.unique(batch.audio_at)) == len(batch.audio_at) == int(composer.config.audio_frames * 4 * n_frames)
    text = batch.frames[:, TEXT].reshape(-1)
    assert set(text[batch.fact.reshape(-1)]) & {EPAD, PAD} == set()
    heard = batch.heard[batch.heard >= 0]
    assert len(heard) > 20
    assert len(set(batch.heard_at[batch.heard >= 0])) == len(heard)


def test_every_answer_is_the_right_one(composer: Composer) -> None:
    kinds = set()
    for seed in range(60):
        call = _Call(composer, np.random.default_rng(seed))
        for _ in range(5):
            user, reply = call._question(call.start)
            asked = composer.bank.lines[user]
            if call.unasked:
                continue
            assert asked
            right = answer_key(asked[0], asked[1], call.facts, call.memory)
            assert right is not None and is_right(reply.line.text, right.intent, right.key)
            words = composer.bank.words_of(reply.clip)[:, 0]
            assert " ".join(composer.bank.vocabulary[word] for word in words) == reply.line.text
            assert (composer.bank.kinds[reply.clip] == OWN) != call.natural
            kinds.add(right.intent)
    assert {"price", "has_item", "address", "ask_name", "arithmetic", "unknown"} <= kinds


def test_calls_teach_either_what_to_say_or_how_it_sounds(composer: Composer) -> None:
    """In a natural call the words of an answer have no weight but its first; in another its sound has none."""
    seen = {True: 0, False: 0}
    for i in range(40):
        talk, start = composer.dialogue(np.random.default_rng(i))
        words = (talk.frames[TEXT] > EPAD) & (talk.frames[TEXT] != PAD) & (np.arange(talk.n_frames) >= start)
        weighty = words & (talk.text_weight > 0)
        seen[talk.natural] += 1
        if talk.natural:
            assert weighty.sum() <= 0.6 * words.sum()
        else:
            assert (weighty == words).all()
    assert min(seen.values()) > 8
    for natural in (True, False):
        only = Composer(composer.bank, composer.tokenizer, replace(composer.config, natural=float(natural)), seed=3)
        batch, talks = only.batch(0, 2), [only.dialogue(np.random.default_rng([3, 0, i]))[0] for i in range(2)]
        spoken = np.concatenate([talk.speech for talk in talks])[batch.audio_at]
        counted = batch.audio_weight[:, 0] > 0
        assert (spoken & counted).any() == natural


def test_a_bank_without_answers_is_an_error_and_no_endless_search(composer: Composer) -> None:
    config = replace(composer.config, fact_questions=0, service=1, no_role=0)
    mute = Composer(composer.bank, composer.tokenizer, config, seed=0)
    mute._said = {
        natural: {of: keys for of, keys in said.items() if of[1] in NEEDED} for natural, said in mute._said.items()
    }
    with pytest.raises(TrainingError, match="no answer to what its users say"):
        mute.batch(0, 8)


def test_the_agent_is_silent_while_the_user_speaks(composer: Composer) -> None:
    quiet = Composer(
        composer.bank,
        composer.tokenizer,
        replace(composer.config, interruptions=0, backchannels=0, noisy=0, wrong_codes=0),
        seed=1,
    )
    for i in range(10):
        talk, start = quiet.dialogue(np.random.default_rng(i))
        silence = quiet.bank.silence[:, None]
        user_speaks = (talk.frames[USER] != silence).any(axis=0)
        user_speaks[: start + 40] = False
        agent_speaks = (talk.frames[AGENT] != silence).any(axis=0)
        # Both codes of a clip's ringing tail and a chance match are possible; overlap of speech is not.
        assert (user_speaks & agent_speaks).sum() == 0
        assert (talk.speech >= agent_speaks)[start:].all()


def test_an_interrupted_agent_says_no_more() -> None:
    talk = Timeline(40, np.zeros(8), np.zeros((40, 8)))
    talk.agent(np.ones((20, 8)), 10)
    talk.word([7, 8], 10, fact=True)
    talk.word([9], 22, fact=True)
    assert talk.frames[TEXT, 9] == EPAD and talk.frames[TEXT, 21] == EPAD
    talk.interrupt(15)
    assert list(talk.frames[TEXT, 9:13]) == [EPAD, 7, 8, PAD]
    assert (talk.frames[TEXT, 15:] == PAD).all() and not talk.fact[15:].any()
    assert (talk.frames[AGENT][:, 15:] == 0).all() and (talk.frames[AGENT][:, 10:15] == 1).all()
    talk.word([5], 16, fact=False)
    assert list(talk.frames[TEXT, 15:18]) == [EPAD, 5, PAD]


def test_words_wait_for_room() -> None:
    talk = Timeline(12, np.zeros(8), np.zeros((12, 8)))
    talk.word([5, 6, 7], 3, fact=False)
    talk.word([8], 4, fact=False)
    talk.word([9], 11, fact=False)
    talk.word([10, 11], 11, fact=False)
    assert list(talk.frames[TEXT]) == [3, 3, 0, 5, 6, 7, 8, 3, 3, 3, 0, 9]


def test_the_pinned_prompt_stays_in_view() -> None:
    model = initialise(LanguageModel(replace(SMALL, context=10), 8), seed=1)
    frames = mx.random.randint(0, CARD, (1, 17, 40), key=mx.random.key(0))
    other = mx.where(mx.arange(40) < 4, (frames + 1) % CARD, frames)

    def last(frames: mx.array, pinned: int) -> np.ndarray:
        return np.array(model.hidden(model.columns(frames)[:, :-1], mx.array([pinned]))[0, -1])

    np.testing.assert_array_equal(last(frames, 0), last(other, 0))
    assert np.abs(last(frames, 5) - last(other, 5)).max() > 1e-3
    np.testing.assert_allclose(
        np.array(model.hidden(model.columns(frames)[:, :-1])[0, -1]), last(frames, 0), rtol=1e-5, atol=1e-6
    )


def training(**changes: object) -> LMTraining:
    values = {
        "lm": SMALL, "steps": 12, "batch": 2, "warmup": 2, "learning_rate": 3e-3, "precision": "float32",
        "compile": False, "checkpoint_every": 4, "log_every": 4,
    }  # fmt: skip
    return LMTraining(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def batches(composer: Composer) -> list[Batch]:
    short = Composer(composer.bank, composer.tokenizer, replace(composer.config, n_frames=480), seed=2)
    return [as_arrays(short.batch(step, 2)) for step in range(4)]


def test_training_learns_resumes_to_the_bit_and_exports(tmp_path: Path, batches: list[Batch]) -> None:
    def batch(step: int) -> Batch:
        return batches[step % len(batches)]

    config = training()
    whole = Run(tmp_path / "whole", {"a": 1})
    train_lm(whole, config, batch, WORDS)
    lines = whole.lines()
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["text"] < 0.9 * lines[0]["text"] and lines[-1]["audio"] < lines[0]["audio"]
    assert (whole.folder / "loss.svg").exists()

    halves = Run(tmp_path / "halves", {"a": 1})
    train_lm(halves, config, batch, WORDS, stop_after_seconds=0)
    assert halves.lines()[-1]["step"] == 1
    train_lm(Run(tmp_path / "halves", {"a": 1}), config, batch, WORDS)
    a, b = (load_lm(tmp_path / name / "model.safetensors", SMALL) for name in ("whole", "halves"))
    there, here = parameters(a), parameters(b)
    for name, value in there.items():
        np.testing.assert_array_equal(np.array(value), np.array(here[name]))


def test_training_can_start_from_a_model(tmp_path: Path, batches: list[Batch]) -> None:
    run = Run(tmp_path / "first", {})
    made = train_lm(run, training(steps=2), lambda step: batches[step], WORDS)
    trainer = LMTrainer(training(), WORDS)
    state = trainer.init_state(run.folder / "model.safetensors")
    np.testing.assert_array_equal(np.array(state.weights["model.text_head.weight"]), np.array(made.text_head.weight))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, batches: list[Batch]) -> None:
    train_lm(Run(tmp_path, {}), training(steps=1), lambda step: batches[step], WORDS)
    wider = training(lm=replace(SMALL, dim=64))
    with pytest.raises(TrainingError, match="another network"):
        train_lm(Run(tmp_path, {}), wider, lambda step: batches[step], WORDS)


def test_every_weight_is_learned(batches: list[Batch]) -> None:
    trainer = LMTrainer(training(), WORDS)
    state = trainer.init_state()
    after, _ = trainer.step(state, batches[0], 0)
    same = [name for name, weight in after.weights.items() if bool((weight == state.weights[name]).all())]
    assert same == []


def test_the_losses_look_where_they_should(batches: list[Batch]) -> None:
    """One batch learned by heart: what the text, the ears and the first codes hold becomes nearly certain."""
    trainer = LMTrainer(training(learning_rate=1e-2, weight_decay=0.0, steps=1000), WORDS)
    state = trainer.init_state()
    first = {name: float(value) for name, value in losses(trainer.trainee, batches[0], mx.ones(8)).items()}
    for step in range(60):
        state, found = trainer.step(state, batches[0], step)
        mx.eval(state)
    assert float(found["text"]) < 0.2 * first["text"]
    assert float(found["heard"]) < 0.5 * first["heard"]
    assert float(found["heard_as_text"]) < 0.5 * first["heard_as_text"]
    assert float(found["semantic"]) < 0.9 * first["semantic"]
    assert float(found["words_right"]) > 0.4 > first["words_right"]


def test_a_bank_that_lacks_something_is_refused(composer: Composer) -> None:
    bank = composer.bank
    lines = [line if line is None or line[0] != "address" else ("joke", (), line[2]) for line in bank.lines]
    with pytest.raises(TrainingError, match="agent 0 says no 'address'"):
        Composer(replace(bank, lines=lines), composer.tokenizer, composer.config, 0)
    with pytest.raises(TrainingError, match="lacks agents"):
        Composer(replace(bank, voices=np.full_like(bank.voices, -1)), composer.tokenizer, composer.config, 0)


def fails(step: int) -> int:
    raise ValueError(step)


def make_fails() -> Callable[[int], int]:
    return fails


def test_a_dead_process_is_one_clear_error() -> None:
    with feed(make_fails, 1) as take, pytest.raises(TrainingError, match="has ended"):
        take(0)


def double(step: int) -> int:
    return 2 * step


def make_double() -> Callable[[int], int]:
    return double


def test_the_feed_keeps_the_order_of_steps() -> None:
    with feed(make_double, 2, first_step=3) as take:
        assert [take(step) for step in range(3, 9)] == [6, 8, 10, 12, 14, 16]
    with feed(make_double, 0) as take:
        assert take(4) == 8


def test_a_bank_made_in_parts_is_the_whole_bank() -> None:
    whole = toy_bank()
    parts = []
    for first, last in ((0, 700), (700, 701), (701, len(whole.kinds))):
        words = whole.words[whole.word_begins[first] : whole.word_begins[last]]
        heard = sorted({whole.vocabulary[word] for word in words[:, 0]})
        numbers = [[heard.index(whole.vocabulary[word]), *times] for word, *times in words]
        parts.append(
            replace(
                whole,
                codes=whole.codes[whole.begins[first] : whole.begins[last]],
                begins=whole.begins[first : last + 1] - whole.begins[first],
                kinds=whole.kinds[first:last],
                voices=whole.voices[first:last],
                lines=whole.lines[first:last],
                rings=whole.rings[first:last],
                pauses=whole.pauses[first:last],
                words=np.array(numbers).reshape(-1, 4),
                word_begins=whole.word_begins[first : last + 1] - whole.word_begins[first],
                vocabulary=heard,
            )
        )
    joined = join(parts)
    assert (joined.kinds, joined.lines, joined.vocabulary) == (whole.kinds, whole.lines, whole.vocabulary)
    for name in ("codes", "begins", "voices", "rings", "pauses", "words", "word_begins", "start", "silence", "sine"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name), err_msg=name)


def test_a_bank_is_read_as_written(tmp_path: Path) -> None:
    bank = toy_bank(users=50)
    bank.save(tmp_path / "bank.npz")
    read = Bank.read(tmp_path / "bank.npz")
    assert read.lines == bank.lines and read.vocabulary == bank.vocabulary
    np.testing.assert_array_equal(read.codes, bank.codes)
    replace(bank, codes=np.asfortranarray(bank.codes)).save(tmp_path / "bank.npz")
    np.testing.assert_array_equal(Bank.read(tmp_path / "bank.npz").codes, bank.codes)
    (tmp_path / "bank.npz").write_bytes(b"not a bank")
    with pytest.raises(TrainingError, match="no clip bank"):
        Bank.read(tmp_path / "bank.npz")


def test_a_token_that_comes_often_is_learned_as_often() -> None:
    tables = TokenTables(2, 5, 8)
    tables.weight = mx.random.normal((2, 5, 8)).astype(mx.bfloat16)
    weight, tokens = tables.weight, mx.array([[3, 1]] * 4_999 + [[-1, 4]])
    expected = np.zeros((2, 5, 8))
    expected[0, 3], expected[1, 1], expected[1, 4] = 4_999, 4_999, 1

    def total(weight: mx.array) -> mx.array:
        tables.update({"weight": weight})
        return tables(tokens).sum()

    gradient = np.array(mx.grad(total)(weight).astype(mx.float32))
    tables.update({"weight": weight})
    learning = tables(tokens)
    tables.eval()

    np.testing.assert_allclose(gradient, expected, rtol=2**-8)  # bfloat16's last bit; one by one they add up to 256
    assert mx.array_equal(learning, tables(tokens))


def test_the_measurement_of_pinning_sees_what_the_model_sees(composer: Composer) -> None:
    """`scripts/measure_pinning.py` against the pass of training, and what following changes."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "measure_pinning.py"))
    model = LanguageModel(SMALL)
    initialise(model, 1)
    columns = np.random.default_rng(0).integers(0, CARD, (300, 17))
    seen = {way: script["guesses"](model, columns, 40, way) for way in script["WAYS"]}
    for way, pinned in zip(script["WAYS"], (0, 40), strict=False):
        z = model.hidden(mx.array(columns)[None], mx.array([pinned]))
        assert seen[way].tolist() == mx.argmax(model.text_head(z), axis=-1)[0].tolist()
    assert (seen["pinned, following"] == seen["pinned where read"])[: 40 + SMALL.context].all()
    assert (seen["pinned, following"] != seen["pinned where read"])[40 + SMALL.context :].any()

    speaker = SimpleNamespace(lm=model, config=SimpleNamespace(lm=SMALL), tokenizer=composer.tokenizer)
    table = script["measure"](speaker, composer.bank, 1, 5, seed=0)
    assert [row.split(" | ")[0] for row in table.splitlines()[2:]] == [f"| {way}" for way in (*script["WAYS"], "words")]
