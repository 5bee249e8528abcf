"""Synthesised speech with the times of its words and phones, and what befalls it on the way to a microphone."""

from personaplex.speech.channel import degrade
from personaplex.speech.phones import PHONES
from personaplex.speech.sounds import noise, sound
from personaplex.speech.speaker import AGENTS, HELDOUT, Speaker, user_speaker
from personaplex.speech.synthesis import say
from personaplex.speech.utterance import Phone, Utterance, Word

__all__ = [
    "AGENTS",
    "HELDOUT",
    "PHONES",
    "Phone",
    "Speaker",
    "Utterance",
    "Word",
    "degrade",
    "noise",
    "say",
    "sound",
    "user_speaker",
]
