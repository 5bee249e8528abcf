"""Recordings answered in every voice, each answer beside every voice prompt; then the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from personaplex.audio import rms
from personaplex.errors import AudioError, PersonaPlexError, UsageError
from personaplex.evaluate.recordings import Recording
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import share
from personaplex.evaluate.voices.embedding import SpeakerEmbedding, embedded
from personaplex.evaluate.voices.own_sound import CodeFinder, decode
from personaplex.evaluate.voices.table import Answer, controls, matrix, nearest_counts, rows
from personaplex.model import PersonaPlex, RolePrompt
from personaplex.speech.formants import formants
from personaplex.speech.identity import pitch
from personaplex.turns import QUIET_RMS
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE
from personaplex.voice import Voice

LEAST_SECONDS = 0.5
"""Speech that it takes to say anything about a voice: a word's length says little."""

GREETING_SECONDS = 6.0
"""How long the model is listened to with nobody speaking, where its voice prompt itself cannot be heard."""

Say = Callable[[str], None]


class Reference(NamedTuple):
    """What a voice prompt sounds like: `pcm` [S]; `how`: from its codes, or the model's own greeting."""

    pcm: np.ndarray
    how: str


class Terms(NamedTuple):
    """What is the same for every answer."""

    embedding: SpeakerEmbedding
    prompt: RolePrompt
    seed: int
    max_seconds: float | None


def evaluate_voices(
    model: PersonaPlex,
    voices: Mapping[str, Voice],
    recordings: Sequence[Recording],
    terms: Terms,
    *,
    about: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Result:
    """Have `model` answer recordings in each of `voices`, and compare.

    A recording that cannot be read, an answer that cannot be made or is without speech, and a voice prompt that cannot
    be heard are Failures. When nothing could be compared, the result's `error` says so. Raises UsageError without
    voices, EngineError from the embedding of a voice prompt.
    """
    if not voices:
        raise UsageError("there is no voice to compare: this model has none, and none was named")
    failures: list[Failure] = []
    references = _references(model, voices, terms, failures, say)
    heard = _readable(recordings, failures, say)
    answers: list[Answer] = []
    prompts = {name: embedded(terms.embedding, reference.pcm) for name, reference in references.items()}
    for name in references:
        for number, (recording, pcm) in enumerate(heard):
            seed = terms.seed + number
            try:
                reply = model.respond(pcm, voice=voices[name], prompt=terms.prompt, seed=seed, **_limit(terms))
                speech = own_speech(reply.audio)
                seconds = len(speech) / SAMPLE_RATE
                if seconds < LEAST_SECONDS:
                    raise AudioError(f"{seconds:.1f} s of speech in it; it takes {LEAST_SECONDS} s to tell a voice")
                vector = embedded(terms.embedding, speech)
                likeness = {other: terms.embedding.similarity(vector, prompts[other]) for other in prompts}
            except PersonaPlexError as error:
                failures.append(Failure(f"{name}: the answer to {recording}", str(error)))
                say(f"not compared: {name}'s answer to {recording}: {error}")
                continue
            answers.append(Answer(name, recording, seconds, likeness, pitch(speech), formants(speech), reply.text))
        say(f"{name}: {sum(answer.voice == name for answer in answers)} of {len(heard)} answers")
    n_lost = len(voices) * len(recordings) - len(answers)
    measured = share("answers measured", [True] * len(answers) + [False] * n_lost, better="higher")
    about = {
        **(about or {}),
        "voices": list(voices),
        "recordings": len(recordings),
        "answers_expected": len(voices) * len(recordings),
        "answers": len(answers),
        "seed": terms.seed,
    }
    if not answers:
        reason = f"; the first: {failures[0].item}: {failures[0].reason}" if failures else ""
        nothing = AudioError(f"no answer could be compared with its voice prompt{reason}")
        return Result("voices", about, [measured], failures=failures, error=nothing)
    sounds = {name: (pitch(reference.pcm), formants(reference.pcm)) for name, reference in references.items()}
    halves = [_halves(terms.embedding, reference.pcm) for reference in references.values()]
    facts = {
        "prompts_heard_as": {name: reference.how for name, reference in references.items()},
        "prompts": {name: {"pitch_hz": hz, "formants_hz": list(at)} for name, (hz, at) in sounds.items()},
        "similarity": matrix(answers),
        "nearest": nearest_counts(answers),
        "controls": controls(answers, terms.seed),
    }
    made = [measured, *rows(answers, sounds, halves, terms.seed)]
    return Result("voices", {**about, **facts}, made, [answer.as_json() for answer in answers], failures)


def own_speech(pcm: np.ndarray) -> np.ndarray:
    """The frames of the agent's channel [S] that are not silent, joined [S']: the user is on another channel."""
    frames = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    return np.concatenate([np.zeros(0, np.float32), *(frame for frame in frames if rms(frame) >= QUIET_RMS)])


def _limit(terms: Terms) -> dict[str, Any]:
    return {} if terms.max_seconds is None else {"max_seconds": terms.max_seconds}


def _references(
    model: PersonaPlex, voices: Mapping[str, Voice], terms: Terms, failures: list[Failure], say: Say
) -> dict[str, Reference]:
    found, finder = {}, CodeFinder(model.lm, model.config)
    for name, voice in voices.items():
        codes = finder.codes(voice)
        if codes is not None:
            reference = Reference(decode(model.mimi, codes), "codes")
        else:
            say(f"{name}: its codes cannot be found in its embeddings; heard instead: how the model greets with it")
            silence = np.zeros(FRAME_SAMPLES, np.float32)
            try:
                reply = model.respond(
                    silence, voice=voice, prompt=terms.prompt, seed=terms.seed, max_seconds=GREETING_SECONDS
                )
            except PersonaPlexError as error:
                failures.append(Failure(f"the voice prompt {name}", str(error)))
                say(f"not compared: the voice prompt {name}: {error}")
                continue
            reference = Reference(reply.audio, "greeting")
        speech = own_speech(reference.pcm)
        if len(speech) < LEAST_SECONDS * SAMPLE_RATE:
            reason = "no speech in it" if reference.how == "codes" else "its codes are not known, and nobody is greeted"
            failures.append(Failure(f"the voice prompt {name}", reason))
            say(f"not compared: the voice prompt {name}: {reason}")
            continue
        found[name] = Reference(speech, reference.how)
    return found


def _readable(recordings: Sequence[Recording], failures: list[Failure], say: Say) -> list[tuple[str, np.ndarray]]:
    found = []
    for recording in recordings:
        try:
            found.append((recording.name, recording.read()))
        except PersonaPlexError as error:
            failures.append(Failure(recording.name, str(error)))
            say(f"not answered: {error}")
    return found


def _halves(embedding: SpeakerEmbedding, pcm: np.ndarray) -> float:
    """How alike the two halves of a voice prompt are."""
    first, second = np.array_split(pcm, 2)
    return embedding.similarity(embedded(embedding, first), embedded(embedding, second))
