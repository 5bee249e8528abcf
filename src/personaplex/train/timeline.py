"""One training dialogue on the clock: which tokens stand in which frame."""

from __future__ import annotations

import numpy as np

from personaplex.models.streams import AGENT, N_STREAMS, TEXT, USER
from personaplex.text import EPAD, PAD

WAITING, SPEAKING, DECIDING = 0.2, 0.15, 1.2
"""Weight of a padding token while the agent listens and between the words that it says (there are so many), and where
it must know that it is not to speak."""

STOPPING_FRAMES = 5
"""Frames after an interruption in which the agent's silence always counts."""


class Timeline:
    """Frames [17, T] filled from the left: prompt first, then what user and agent say and when.

    `text_weight` [T] is the weight of each text token in the loss, `fact` [T] marks words that hold a fact, `speech`
    [T] the frames in which the agent is heard, `stopping` [T] those in which it falls silent; `heard` lists (frame,
    word) of the user's finished words, and the first `pinned` columns stay in view. What is said in a `natural` call
    is sound to learn from, in another it is text.
    """

    def __init__(self, n_frames: int, silence: np.ndarray, background: np.ndarray, *, natural: bool = True) -> None:
        self.frames = np.empty((N_STREAMS, n_frames), np.int32)
        self.frames[TEXT] = PAD
        self.frames[AGENT] = silence[:, None]
        self.frames[USER] = background.T
        self.text_weight = np.full(n_frames, WAITING, np.float32)
        self.fact = np.zeros(n_frames, bool)
        self.speech = np.zeros(n_frames, bool)
        self.stopping = np.zeros(n_frames, bool)
        self.heard: list[tuple[int, int]] = []
        self.pinned = 0
        self.natural = natural
        self._silence = silence
        self._text_free = 0

    @property
    def n_frames(self) -> int:
        """T."""
        return self.frames.shape[1]

    def prompt(self, voice: np.ndarray, text: list[int], spacer: int, sine: np.ndarray) -> int:
        """Lay out voice codes [F, 8] and role tokens from frame 0; returns the first frame of the talk.

        As in `engine.prompt.compose`, the first frame forced is lost: position 0 holds the initial tokens.
        """
        tokens = np.array([PAD] * (len(voice) + spacer) + text + [PAD] * spacer)[1:]
        end = len(tokens)
        self.frames[TEXT, :end] = tokens
        self.frames[AGENT, : len(voice) - 1] = voice[1:].T
        self.frames[USER, :end] = sine[:, None]
        self.text_weight[:end] = 0
        self._text_free = end
        return end

    def user(self, codes: np.ndarray, at: int) -> int:
        """The user is heard from frame `at`; returns the first frame after."""
        at, end = min(at, self.n_frames), min(at + len(codes), self.n_frames)
        self.frames[USER, at:end] = codes[: end - at].T
        return end

    def hear(self, frame: int, word: int) -> None:
        """From `frame` on the model may know that the user has said `word`."""
        if frame < self.n_frames:
            self.heard.append((frame, word))

    def decide(self, begin: int, end: int) -> None:
        """From `begin` to `end` it matters that the agent does not speak yet."""
        self.text_weight[begin:end] = DECIDING

    def agent(self, codes: np.ndarray, at: int) -> int:
        """The agent is heard from frame `at`; returns the first frame after."""
        at, end = min(at, self.n_frames), min(at + len(codes), self.n_frames)
        self.frames[AGENT, at:end] = codes[: end - at].T
        self.speech[at:end] = True
        self.stopping[end : end + 2] = True
        self.text_weight[at:end] = np.where(self.frames[TEXT, at:end] == PAD, SPEAKING, self.text_weight[at:end])
        return end

    def word(self, tokens: list[int], at: int, *, fact: bool) -> None:
        """A word's tokens from the frame in which it begins, or when there is room; EPAD in the frame before."""
        at = max(at, self._text_free)
        if self._text_free < at <= self.n_frames and self.frames[TEXT, at - 1] == PAD:
            self.frames[TEXT, at - 1], self.text_weight[at - 1] = EPAD, 1
        end = min(at + len(tokens), self.n_frames)
        if at >= end:
            return
        self.frames[TEXT, at:end] = tokens[: end - at]
        self.text_weight[at:end] = 1
        self.fact[at:end] = fact
        self._text_free = end

    def trust(self, begin: int, end: int, weight: float) -> None:
        """From `begin` to `end` the words could be read off the sound that goes with them: they count so much."""
        self.text_weight[begin:end] *= weight
        self.fact[begin:end] &= weight > 0

    def interrupt(self, at: int) -> None:
        """The agent falls silent at frame `at`: what it had still to say is gone."""
        self.frames[AGENT, at:] = self._silence[:, None]
        self.frames[TEXT, at:] = PAD
        self.text_weight[at:] = WAITING
        self.fact[at:] = self.speech[at:] = self.stopping[at:] = False
        self.stopping[at : at + STOPPING_FRAMES] = True
        self.decide(at, at + STOPPING_FRAMES)
        self._text_free = min(self._text_free, at)
