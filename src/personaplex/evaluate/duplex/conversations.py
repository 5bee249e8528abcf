"""A model talks: each clip's recording is heard, and what the agent says meanwhile is written, of the same length."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from personaplex.audio import write_audio
from personaplex.conversation import Audio, Backend, Conversation, Ended, Error, Event, Overrun, Settings
from personaplex.errors import ConversationError, OutputError, PersonaError, PersonaPlexError
from personaplex.evaluate.duplex.channels import AgentChannel, user_sound
from personaplex.evaluate.duplex.clips import OVERLAPS, Clip, Task
from personaplex.evaluate.result import Failure
from personaplex.text import PROMPTS
from personaplex.units import FRAME_SAMPLES, SAMPLE_RATE

CONVERSATION = "You enjoy having a good conversation."

PROMPTS_BY_TASK: Mapping[Task, str] = {
    "pause": CONVERSATION,
    "backchannel": CONVERSATION,
    "turn": CONVERSATION,
    "interruption": PROMPTS["teacher"],
    **dict.fromkeys(OVERLAPS, PROMPTS["teacher"]),
}
"""The roles in which PersonaPlex was measured; of v1.5, whose users ask an assistant, that of the interruptions."""

_PIECE = 10 * FRAME_SAMPLES


@dataclass(frozen=True)
class Talked:
    """What came of it: clips that could not be talked through, seconds of speech heard, and seconds that it took."""

    failures: list[Failure]
    sound_seconds: float
    seconds: float


def talk_through(
    backend: Backend,
    clips: Sequence[Clip],
    settings: Callable[[Task], Settings],
    *,
    seed: int,
    slots: int,
    agent_channel: AgentChannel = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Talked:
    """Hold a conversation with every clip, `slots` at once, and write its `output.wav` (and `clean_output.wav`).

    A clip's seed comes from `seed` and its name, so it does not matter which others are there. What cannot be read is
    a failure and the rest goes on. What cannot be written (OutputError) and a voice or role that there is not
    (PersonaError) end it, and `backend` with it.
    """
    began = time.perf_counter()
    n_done = 0

    def talk(clip: Clip) -> tuple[float, Failure | None]:
        nonlocal n_done
        own = replace(settings(clip.task), seed=(seed + zlib.crc32(clip.id.encode())) % (1 << 32))
        try:
            heard = sum(_talk(backend, own, source, target, agent_channel) for source, target in _pairs(clip))
        except (OutputError, PersonaError):  # no clip's fault
            raise
        except PersonaPlexError as error:
            return 0.0, Failure(clip.id, str(error))
        finally:
            n_done += 1
            say(f"talked through {n_done} of {len(clips)} clips")
        return heard, None

    with ThreadPoolExecutor(slots, "clip") as threads:
        try:
            outcomes = list(threads.map(talk, clips))
        except BaseException:  # Ctrl-C among them: nobody waits for conversations that nobody wants
            threads.shutdown(wait=False, cancel_futures=True)
            backend.close()
            raise
    failures = [failure for _, failure in outcomes if failure is not None]
    return Talked(failures, sum(heard for heard, _ in outcomes), time.perf_counter() - began)


def _pairs(clip: Clip) -> list[tuple[Path, Path]]:
    """What is heard and where the answer goes."""
    pairs = [(clip.folder / "input.wav", clip.results / "output.wav")]
    clean = clip.folder / "clean_input.wav"
    if clip.task in OVERLAPS and clean.exists():
        pairs.append((clean, clip.results / "clean_output.wav"))
    return pairs


def _talk(backend: Backend, settings: Settings, source: Path, target: Path, agent_channel: AgentChannel) -> float:
    user = user_sound(source, agent_channel)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_suffix(".json").unlink(missing_ok=True)  # words of another answer
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error
    write_audio(target, converse(backend, user, settings))
    return len(user) / SAMPLE_RATE


def converse(backend: Backend, user: np.ndarray, settings: Settings) -> np.ndarray:
    """What the agent says while it hears `user`: [S] as long as that, at 24 kHz, sample beside sample.

    Faster than real time where the model is. Raises ConversationError when the conversation ends before its time.
    """
    conversation: Conversation
    with backend.open(settings) as conversation:
        events, said = conversation.events(), _Said(len(user))
        for at in range(0, len(user), _PIECE):
            conversation.feed(user[at : at + _PIECE])
            while (event := events.get(timeout=0)) is not None:
                said.take(event)
        conversation.finish()
        for event in events:
            said.take(event)
    return said.pcm


class _Said:
    """The agent's sound as it comes."""

    def __init__(self, n_samples: int) -> None:
        self.pcm = np.zeros(n_samples, np.float32)

    def take(self, event: Event) -> None:
        if isinstance(event, Audio):
            place = self.pcm[event.frame * FRAME_SAMPLES :][:FRAME_SAMPLES]
            place[:] = event.pcm[: len(place)]
        elif isinstance(event, Error):
            raise event.error
        elif isinstance(event, Overrun):
            raise ConversationError(f"{event.dropped} frames were not heard: the answer is not one to this recording")
        elif isinstance(event, Ended) and event.reason != "finished":
            raise ConversationError(f"the conversation ended before its recording did ({event.reason})")
