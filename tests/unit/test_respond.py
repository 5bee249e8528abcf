"""The library's calls: one path under all of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from personaplex import PersonaPlex, Reply
from personaplex.errors import AudioError, PersonaError, UsageError
from personaplex.models.streams import AGENT, USER
from personaplex.reply import AgentFrame
from personaplex.talk import SilenceWatch, StopRule
from personaplex.units import FRAME_SAMPLES, frames_in

SAID = {"voice": "VOICE0", "prompt": "assistant"}


@pytest.fixture(scope="module")
def reply(model: PersonaPlex, speech: np.ndarray) -> Reply:
    return model.respond(speech, voice="VOICE0", seed=5, max_steps=12)


def test_a_reply_covers_the_users_time_and_goes_on(reply: Reply, speech: np.ndarray) -> None:
    n = frames_in(len(speech)) + 12
    assert (reply.user_frames, reply.stopped, reply.timings.n_frames) == (28, "limit", n)
    assert reply.audio.shape == (n * FRAME_SAMPLES,) and reply.audio.dtype == np.float32
    assert reply.tokens.shape == (17, n) and reply.tokens.dtype == np.int32
    assert reply.seconds == pytest.approx(n * 0.08)


def test_sound_is_decoded_from_whole_frames_not_from_columns(model: PersonaPlex, reply: Reply) -> None:
    """Semantic and acoustic codes of one frame belong together; a port decoded those of one step instead."""
    codes = mx.array(reply.tokens[None, AGENT])
    decoded = np.array(model.mimi.decode(codes)[0])
    assert np.abs(decoded - reply.audio).max() < 1e-4 * np.abs(decoded).max()
    by_column = reply.tokens[AGENT].copy()
    by_column[1:] = np.roll(by_column[1:], 1, axis=1)
    other = np.array(model.mimi.decode(mx.array(by_column[None]))[0])
    assert np.abs(other - reply.audio).max() > 0.01 * np.abs(decoded).max()


def test_after_the_users_end_the_model_hears_encoded_silence(
    model: PersonaPlex, reply: Reply, speech: np.ndarray
) -> None:
    """Never its own guesses at the user; and the last partial frame is padded with zeros."""
    padded = np.pad(speech, (0, len(reply.audio) - len(speech)))
    assert np.array_equal(reply.tokens[USER], np.array(model.mimi.encode(mx.array(padded[None]))[0]))


def test_text_comes_from_every_frame_also_while_the_user_speaks(model: PersonaPlex, reply: Reply) -> None:
    assert reply.text == model.tokenizer.decode(reply.tokens[0].tolist())
    assert any(model.tokenizer.is_text(int(t)) for t in reply.tokens[0, : reply.user_frames])


def test_the_same_seed_gives_the_same_answer(model: PersonaPlex, reply: Reply, speech: np.ndarray) -> None:
    again = model.respond(speech, voice="VOICE0", seed=5, max_steps=12)
    assert np.array_equal(again.tokens, reply.tokens) and np.array_equal(again.audio, reply.audio)
    other = model.respond(speech, voice="VOICE0", seed=6, max_steps=12)
    assert not np.array_equal(other.tokens, reply.tokens)
    fresh = model.respond(speech, voice="VOICE0", max_steps=0)
    repeated = model.respond(speech, voice="VOICE0", max_steps=0, seed=fresh.seed)
    assert np.array_equal(fresh.tokens, repeated.tokens)


@pytest.mark.parametrize("chunk_frames", [1, 7, 20, 40, 99])
def test_chunks_add_up_to_the_reply_and_only_the_last_is_marked(
    model: PersonaPlex, reply: Reply, speech: np.ndarray, chunk_frames: int
) -> None:
    """40 frames: with 20 and 40 the total is a multiple of the chunk, where a port forgot to mark the last."""
    stream = model.respond_stream(speech, voice="VOICE0", seed=5, max_steps=12, chunk_frames=chunk_frames)
    chunks = list(stream)
    assert [c.is_last for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks) == -(-40 // chunk_frames)
    assert [c.first_frame for c in chunks] == [i * chunk_frames for i in range(len(chunks))]
    assert np.array_equal(np.concatenate([c.audio for c in chunks]), reply.audio)
    assert "".join(c.text for c in chunks).strip() == reply.text
    assert stream.reply.text == reply.text


def test_a_stream_can_be_cancelled(model: PersonaPlex, reply: Reply, speech: np.ndarray) -> None:
    stream = model.respond_stream(speech, voice="VOICE0", seed=5, max_steps=12, chunk_frames=4)
    chunks = iter(stream)
    first = next(chunks)
    stream.cancel()
    rest = list(chunks)
    assert not first.is_last and [c.is_last for c in rest] == [True]
    assert stream.reply.stopped == "cancelled"
    assert np.array_equal(stream.reply.tokens, reply.tokens[:, : stream.reply.timings.n_frames])


def test_cancelling_inside_a_frame_keeps_that_frame(model: PersonaPlex, speech: np.ndarray) -> None:
    stream = model.respond_stream(speech, voice="VOICE0", seed=5, chunk_frames=100)
    stream.on_frame = lambda done, _: stream.cancel() if done == 3 else None
    (only,) = list(stream)
    assert only.is_last and only.tokens.shape[1] == 3


def test_a_stream_closed_early_says_so(model: PersonaPlex, speech: np.ndarray) -> None:
    stream = model.respond_stream(speech, voice="VOICE0", chunk_frames=1)
    chunks = iter(stream)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="cancel"):
        _ = stream.reply


def test_a_conversation_goes_on_from_a_reply(model: PersonaPlex, speech: np.ndarray) -> None:
    """Two turns are one conversation: nothing is forgotten and nothing is read again."""
    greedy = model.sampling(greedy=True)
    cut = 10 * FRAME_SAMPLES
    whole = model.respond(speech, voice="VOICE0", sampling=greedy, max_steps=0)
    first = model.respond(speech[:cut], voice="VOICE0", sampling=greedy, max_steps=0)
    second = model.respond(speech[cut:], state=first, max_steps=0)
    again = model.respond(speech[cut:], state=first.state, max_steps=0)
    assert np.array_equal(np.concatenate([first.tokens, second.tokens], axis=1), whole.tokens)
    assert np.allclose(np.concatenate([first.audio, second.audio]), whole.audio, atol=1e-3)
    assert np.array_equal(again.tokens, second.tokens)
    with pytest.raises(UsageError, match="keeps its voice"):
        model.respond(speech, state=first, prompt="teacher")


def test_nothing_is_left_over_for_the_next(model: PersonaPlex, speech: np.ndarray, reply: Reply) -> None:
    model.respond(speech[::-1].copy(), voice=None, prompt=None, seed=1, max_steps=3)
    assert np.array_equal(model.respond(speech, voice="VOICE0", seed=5, max_steps=12).tokens, reply.tokens)


def test_voice_and_prompt_change_the_answer(model: PersonaPlex, speech: np.ndarray) -> None:
    greedy = model.sampling(greedy=True)
    answers = [
        model.respond(speech, voice=voice, prompt=prompt, sampling=greedy, max_steps=0).tokens[:9].tobytes()
        for voice, prompt in (
            ("VOICE0", "assistant"), ("VOICE0", "teacher"), ("VOICE0", None), (None, "assistant"), (None, None)
        )
    ]  # fmt: skip
    assert len(set(answers)) == len(answers)
    ids = model.tokenizer.role_tokens(model.list_prompts()["teacher"])
    by_ids = model.respond(speech, voice="VOICE0", prompt=ids, sampling=greedy, max_steps=0)
    assert by_ids.tokens[:9].tobytes() == answers[1]


def test_without_a_prompt_the_first_frame_is_silence_not_noise(model: PersonaPlex, speech: np.ndarray) -> None:
    reply = model.respond(speech, voice=None, prompt=None, seed=1, max_steps=0)
    silence = mx.array(model.config.silence_codes)[None, :, None]
    assert np.allclose(reply.audio[:FRAME_SAMPLES], np.array(model.mimi.decode(silence)[0]), rtol=1e-4, atol=1e-3)
    assert (reply.tokens[1:, 0] == 2048).all()


def test_a_look_inside_every_step(model: PersonaPlex, speech: np.ndarray) -> None:
    steps = model.diagnose(speech, voice="VOICE0", sampling=model.sampling(greedy=True), max_steps=2, top=3)
    reply = model.respond(speech, voice="VOICE0", sampling=model.sampling(greedy=True), max_steps=2)
    assert [s.frame for s in steps] == list(range(30))
    assert np.array_equal(np.array([s.tokens for s in steps]).T, reply.tokens)
    for now, following in pairwise(steps):
        assert now.top_text[0][0] == model.tokenizer.piece(following.tokens[0])
        assert now.top_codes[1:] == now.tokens[2:9]
        assert 0 < now.text_entropy <= np.log(320) and all(0 < e <= np.log(2048) for e in now.code_entropies)
        assert now.hidden_min < now.hidden_mean < now.hidden_max and now.hidden_std > 0
        assert [p for _, p in now.top_text] == sorted((p for _, p in now.top_text), reverse=True)


def test_warm_up_leaves_no_trace(model: PersonaPlex, speech: np.ndarray, reply: Reply) -> None:
    assert model.warm_up() > 0
    assert np.array_equal(model.respond(speech, voice="VOICE0", seed=5, max_steps=12).tokens, reply.tokens)


def test_the_compiled_step_says_the_same(model: PersonaPlex, speech: np.ndarray) -> None:
    greedy = model.sampling(greedy=True)
    compiled = PersonaPlex(model.folder, model.lm, model.mimi, model.tokenizer, compiled=True)
    a = model.respond(speech[: 6 * FRAME_SAMPLES], voice="VOICE0", sampling=greedy, max_steps=0)
    b = compiled.respond(speech[: 6 * FRAME_SAMPLES], voice="VOICE0", sampling=greedy, max_steps=0)
    assert np.array_equal(a.tokens, b.tokens)
    assert compiled.warm_up() > 0, "nor does it need a prompt"


def test_saving_a_reply(reply: Reply, tmp_path: Path) -> None:
    from personaplex.audio import read_audio

    saved = read_audio(reply.save(tmp_path / "answer.flac"))
    assert np.abs(saved - np.clip(reply.audio, -1, 1)).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"voice": "NATF0"}, PersonaError),
        ({"voice": "no/such.wav"}, PersonaError),
        ({"voice": "VOICE0", "prompt": "teachr"}, PersonaError),
        ({"voice": "VOICE0", "prompt": [999]}, PersonaError),
        ({"voice": "VOICE0", "max_steps": 3, "max_seconds": 2.0}, UsageError),
        ({"voice": "VOICE0", "max_steps": -1}, UsageError),
        ({"voice": "VOICE0", "max_seconds": float("nan")}, UsageError),
        ({"voice": "VOICE0", "chunk_frames": 0}, UsageError),
        ({"voice": "VOICE0", "seed": -1}, UsageError),
        ({"voice": "VOICE0", "seed": 1.5}, UsageError),
        ({"voice": "VOICE0", "max_step": 5}, UsageError),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_chunk(
    model: PersonaPlex, speech: np.ndarray, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        model.respond_stream(speech, **options)  # type: ignore[arg-type]
    with pytest.raises(AudioError):
        model.respond(np.zeros(0, np.float32), voice="VOICE0")


LOUD, QUIET = np.full(FRAME_SAMPLES, 0.1, np.float32), np.zeros(FRAME_SAMPLES, np.float32)


def watched(script: str, rule: StopRule, n_user: int) -> tuple[int, str | None]:
    """Follow a script of frames: U user speaks, A agent speaks, T agent's text only, . nobody; where it stopped."""
    watch = SilenceWatch(rule, (0, 3))
    for at, who in enumerate(script):
        frame = AgentFrame(at, LOUD if who == "A" else QUIET, "", np.array([50 if who == "T" else 3]), 0.0)
        reason = watch.is_over(LOUD if who == "U" else QUIET, frame, at + 1 - n_user)
        if reason:
            return at, reason
    return len(script), None


RULE = StopRule(limit=30, pause=3, patience=6)


@pytest.mark.parametrize(
    ("script", "n_user", "stops"),
    [
        ("UUUU..AAA..." + "." * 20, 4, (11, "silence")),  # answered, then a pause
        ("UUUU......" + "." * 20, 4, (9, "silence")),  # never answered: patience
        ("UUUU..AA..AA...", 4, (14, "silence")),  # a breath is no end
        ("UUUU..TT..." + "." * 9, 4, (10, "silence")),  # text counts as speaking
        ("UUU.AAA........", 15, (14, "silence")),  # the recording goes on, so does the reply
        ("UUAA....UU....AA....", 10, (18, "silence")),  # an answer to the first question is none to the second
        ("UUUU" + "A" * 40, 4, (33, "limit")),
    ],
)
def test_when_a_reply_is_over(script: str, n_user: int, stops: tuple[int, str]) -> None:
    assert watched(script, RULE, n_user) == stops


def test_without_the_silence_rule_only_the_limit_ends_it() -> None:
    assert watched("UU" + "." * 60, StopRule(limit=30, on_silence=False), 2) == (31, "limit")
    assert watched("UU..", StopRule(limit=0), 2) == (1, "limit")


def test_realtime_takes_what_respond_takes_and_refuses_the_rest(model: PersonaPlex, speech: np.ndarray) -> None:
    greedy, two = model.sampling(greedy=True), speech[: 2 * FRAME_SAMPLES]
    as_integers = (two * 32767).astype(np.int16)
    said = [
        list(model.respond_realtime([x], voice="VOICE0", sampling=greedy))
        for x in (as_integers, as_integers.astype(np.float64) / 32768)
    ]
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(*said, strict=True))
    for bad in (np.zeros((2, 10), np.float32), np.zeros(10, np.int64), np.full(10, np.nan, np.float32)):
        with pytest.raises(AudioError):
            list(model.respond_realtime([bad], voice="VOICE0"))
