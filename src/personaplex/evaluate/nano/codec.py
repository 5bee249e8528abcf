"""The codec by itself: how intelligible speech stays, what a recogniser loses by it, whether voices stay apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from personaplex.dialogue import agent_plan, user_plan
from personaplex.evaluate.codec.measures import stoi
from personaplex.evaluate.nano.recogniser import hear_all, word_loop
from personaplex.evaluate.row import Row, mean, share
from personaplex.evaluate.statistics import word_errors
from personaplex.models.mimi import Mimi
from personaplex.speech import AGENTS, HELDOUT, Speaker, say
from personaplex.speech.identity import NearestVoice, embedding
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

_WORDS = """
apple basket bottle bridge candle carpet chair circle clock coffee corner dinner doctor dragon eleven engine
family feather finger flower garden guitar hammer history island jacket kitchen ladder lemon letter machine
market mirror monkey morning mountain number office orange paper pencil pepper picture pocket purple rabbit
river second shadow silver spider summer table ticket tomato tower uncle village water window winter yellow
"""
WORDS = tuple(_WORDS.split())
"""What the recogniser may hear: words that no other of them sounds like."""
WORDS_SAID = 6

_BATCH = 16


def round_trip(mimi: Mimi, recordings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each recording [S] (24 kHz) through the codec, as long as before; those of like length together."""
    order = sorted(range(len(recordings)), key=lambda i: len(recordings[i]))
    found: dict[int, np.ndarray] = {}
    for at in range(0, len(order), _BATCH):
        group = order[at : at + _BATCH]
        longest = -(-max(len(recordings[i]) for i in group) // FRAME_SAMPLES) * FRAME_SAMPLES
        pcm = np.stack([np.pad(recordings[i], (0, longest - len(recordings[i]))) for i in group])
        decoded = np.array(mimi.decode(mimi.encode(mx.array(pcm))))
        found |= {i: row[: len(recordings[i])] for i, row in zip(group, decoded, strict=True)}
    return [found[i] for i in range(len(recordings))]


def intelligibility(
    mimi: Mimi, speakers: Mapping[str, Sequence[Speaker]], n: int, seed: int
) -> list[tuple[str, list[float]]]:
    """STOI of `n` sentences per group of speakers, the codec's output against its input.

    Raises BackendError when pystoi is not installed.
    """
    measured = []
    for number, (group, members) in enumerate(speakers.items()):
        lines = user_plan(np.random.default_rng([seed, number]), 3 * n, "heldout")
        lines = [line for line in lines if len(line.text.split()) >= 4][:n]
        clean = [_padded(say(members[i % len(members)], line.text).pcm) for i, line in enumerate(lines)]
        pairs = zip(clean, round_trip(mimi, clean), strict=True)
        measured.append((group, [stoi(a, b) for a, b in pairs]))
    return measured


def words_lost(
    mimi: Mimi, speakers: Sequence[Speaker], n: int, seed: int, *, processes: int = 0
) -> tuple[list[int], list[int]]:
    """Word errors in each of `n` utterances of six words per speaker: heard directly, and heard through the codec."""
    rng = np.random.default_rng(seed)
    said = [[WORDS[i] for i in rng.choice(len(WORDS), WORDS_SAID, replace=False)] for _ in range(n * len(speakers))]
    clean = [_padded(say(speakers[i % len(speakers)], " ".join(words)).pcm) for i, words in enumerate(said)]
    both = hear_all([*clean, *round_trip(mimi, clean)], word_loop(WORDS), processes=processes)
    errors = [word_errors(words, heard) for words, heard in zip([*said, *said], both, strict=True)]
    return errors[: len(said)], errors[len(said) :]


def nearest_voice(mimi: Mimi, seed: int, examples: int = 6) -> NearestVoice:
    """Knows the 18 voices by `examples` sentences of each, synthesised and passed through the codec."""
    spoken = _agents_speech(examples, seed)
    embedded = [embedding(pcm) for pcm in round_trip(mimi, [pcm for _, pcm in spoken])]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in AGENTS}
    for (name, _), row in zip(spoken, embedded, strict=True):
        rows[name].append(row)
    return NearestVoice(rows)


def _agents_speech(n: int, seed: int) -> list[tuple[str, np.ndarray]]:
    """n sentences of each agent: (voice, samples), different sentences for each."""
    rng = np.random.default_rng(seed)
    lines = [line for line in agent_plan(rng) if len(line.text.split()) >= 4]
    return [
        (name, say(speaker, lines[i].text).pcm)
        for name, speaker in AGENTS.items()
        for i in rng.choice(len(lines), n, replace=False)
    ]


_SLT = Speaker("slt", "flite", "slt", 150.0, rate=0.85, formant=1.04)
"""No agent's voice any more, but many users'."""


def rows(mimi: Mimi, per_row: int, seed: int, *, processes: int = 0) -> list[Row]:
    """Every row about the codec alone."""
    natural = HELDOUT["awb"]
    synthetic = [speaker for speaker in HELDOUT.values() if speaker is not natural]
    groups = {
        "held-out natural voice (awb)": [natural],
        "held-out synthetic voices": synthetic,
        "the 18 voices": list(AGENTS.values()),
    }
    measured = dict(intelligibility(mimi, groups, per_row, seed))
    held_out = [value for group in list(groups)[:2] for value in measured[group]]
    made = [mean("codec: STOI, held-out voices", held_out, 0.88)]
    made += [mean(f"codec: STOI, {group}", values) for group, values in measured.items()]
    flite = {"slt": _SLT, "rms": AGENTS["NATM0"], "kal16": AGENTS["NATM1"], "awb": natural}
    n = max(1, per_row // len(flite))
    before, after = words_lost(mimi, list(flite.values()), n, seed + 1, processes=processes)
    made.append(added_row("codec: word error rate added, flite voices", before, after, 0.05))
    for i, name in enumerate(flite):
        made.append(added_row(f"codec: word error rate added, {name}", before[i :: len(flite)], after[i :: len(flite)]))
    made.append(mean("the recogniser's own word error rate there", [errors / WORDS_SAID for errors in before]))
    nearest = nearest_voice(mimi, seed + 2)
    spoken = _agents_speech(-(-per_row // len(AGENTS)), seed + 3)
    decoded = round_trip(mimi, [pcm for _, pcm in spoken])
    told = [nearest(pcm) == name for (name, _), pcm in zip(spoken, decoded, strict=True)]
    return [*made, share("codec: voice told apart, nearest of 18", told)]


def _padded(pcm: np.ndarray) -> np.ndarray:
    """Speech with a quarter of a second of silence before and behind it."""
    return np.pad(pcm, SAMPLE_RATE // 4)


def added_row(what: str, before: Sequence[int], after: Sequence[int], goal: float | None = None) -> Row:
    """A row of the word error rate added, utterance by utterance."""
    added = [(b - a) / WORDS_SAID for a, b in zip(before, after, strict=True)]
    return mean(what, added, goal, at_most=True)
