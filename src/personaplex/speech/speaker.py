"""Who speaks: the 18 agents, the held-out users, and users without end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Speaker:
    """A synthesiser's voice and how it is bent.

    `pitch` is in Hz for flite and a multiple of the voice's own for espeak; `rate` is a multiple of the voice's speed,
    `range` of its variation of pitch, `formant` of its resonances' frequencies (above 1: a shorter vocal tract).
    """

    name: str
    engine: Literal["flite", "espeak"]
    voice: str
    pitch: float
    rate: float = 1.0
    formant: float = 1.0
    range: float = 1.0


def _agent(name: str, voice: str, pitch: float, formant: float, rate: float = 1.0, spread: float = 1.0) -> Speaker:
    return Speaker(name, "flite", voice, pitch, rate, formant, spread)


AGENTS: dict[str, Speaker] = {
    speaker.name: speaker
    for speaker in (
        _agent("NATF0", "rms", 210, 1.15, 1.0),
        _agent("NATF1", "kal16", 225, 1.08, 1.0),
        _agent("NATF2", "rms", 215, 1.08, 1.0),
        _agent("NATF3", "rms", 180, 1.00, 1.05),
        _agent("NATM0", "rms", 140, 1.00, 1.05),
        _agent("NATM1", "kal16", 110, 1.00, 1.0),
        _agent("NATM2", "rms", 110, 0.92, 1.0),
        _agent("NATM3", "rms", 140, 1.08, 1.1),
        _agent("VARF0", "kal16", 180, 1.08, 1.0),
        _agent("VARF1", "rms", 180, 1.08, 1.1, 1.3),
        _agent("VARF2", "rms", 225, 1.00, 1.05),
        _agent("VARF3", "rms", 225, 0.92, 1.05),
        _agent("VARF4", "rms", 180, 0.92, 0.95, 0.7),
        _agent("VARM0", "rms", 85, 1.00, 1.0),
        _agent("VARM1", "kal16", 140, 1.08, 1.05),
        _agent("VARM2", "rms", 85, 1.08, 1.0, 0.7),
        _agent("VARM3", "rms", 110, 1.15, 1.05),
        _agent("VARM4", "kal16", 110, 1.22, 1.0),
    )
}
"""The voices a user can choose, by PersonaPlex's names; pitch in Hz.

Chosen by measurement from some ninety: those whose short sentences a recogniser still understands after the codec, and
of those the ones farthest apart (docs/log.md). It is why all are made from rms and kal16."""

_HELDOUT_ACCENTS = ("en-gb-x-rp", "en-us-nyc", "en-gb-x-gbcwmd")
_HELDOUT_VARIANTS = ("f4", "m4", "m6", "linda", "Michael")

HELDOUT: dict[str, Speaker] = {
    "awb": Speaker("awb", "flite", "awb", 132.0),
    "rp-f4": Speaker("rp-f4", "espeak", "en-gb-x-rp+f4", 1.0),
    "nyc-m4": Speaker("nyc-m4", "espeak", "en-us-nyc+m4", 1.0),
    "midlands-m6": Speaker("midlands-m6", "espeak", "en-gb-x-gbcwmd+m6", 1.1, rate=0.9),
    "nyc-linda": Speaker("nyc-linda", "espeak", "en-us-nyc+linda", 1.0, rate=0.95),
    "rp-michael": Speaker("rp-michael", "espeak", "en-gb-x-rp+Michael", 1.1),
}
"""Voices to measure with. `user_speaker` can draw neither these voices nor these accents and variants."""

_FLITE_VOICES = ("slt", "rms", "kal", "kal16")
_FLITE_SHARES = (0.4, 0.3, 0.1, 0.2)
_FLITE_FORMANTS = {"slt": (0.82, 1.22), "rms": (0.86, 1.22), "kal": (0.86, 1.22), "kal16": (0.86, 1.22)}

_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-gbclan", "en-029")
_ACCENT_SHARES = (0.5, 0.25, 0.08, 0.1, 0.07)
_VARIANTS = (
    "", "f1", "f2", "f3", "f5", "m1", "m2", "m3", "m5", "m7", "m8", "Alex", "Alicia", "Andrea", "Andy", "Annie",
    "Denis",
    "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Mike", "Nguyen", "adam", "anika",
    "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa",
    "gustave",
    "iven", "john", "kaukovalta", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy",
    "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip


def user_speaker(rng: np.random.Generator) -> Speaker:
    """Draw a user: any training voice of either synthesiser, bent at random. Never a held-out one."""
    rate = float(np.exp(rng.uniform(np.log(0.75), np.log(1.35))))
    spread = float(rng.uniform(0.5, 1.7))
    if rng.random() < 0.55:
        voice = str(rng.choice(_FLITE_VOICES, p=_FLITE_SHARES))
        formant = float(rng.uniform(*_FLITE_FORMANTS[voice]))
        # A long vocal tract goes with a low voice, loosely: 75 to 300 Hz over all.
        middle = 150 * (formant / 0.98) ** 2.2
        pitch = float(np.clip(middle * np.exp(rng.normal(0, 0.28)), 75, 300))
        return Speaker("user", "flite", voice, pitch, rate, formant, spread)
    accent, variant = str(rng.choice(_ACCENTS, p=_ACCENT_SHARES)), str(rng.choice(_VARIANTS))
    voice = f"{accent}+{variant}" if variant else accent
    pitch = float(np.exp(rng.uniform(np.log(0.75), np.log(1.35))))
    return Speaker("user", "espeak", voice, pitch, rate, float(rng.uniform(0.86, 1.18)), spread)
