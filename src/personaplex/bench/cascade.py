"""The cascade, stage by stage, and what streaming between them gains.

After the user's last word come: the silence that ends a turn (0.6 s in a conversation, not counted here), the rest of
the transcript, the language model's first sentence, and the making of its sound; then something is audible. Without
streaming it is all of the answer, and all of its sound: that is measured on the same question and answer. So what
streaming gains grows with the answer, and with the time that a token takes; the responder is no language model and
takes none, so it is measured a second time at 40 words a second, as a small model might speak.

The last rows stop each stage at a random moment of its work, until it is free for the next: a recogniser's and a
voice's thread end what they are computing, for native code cannot be stopped, so both are given small pieces. The
conversation is stopped in the middle of an answer, until its user is told, from when on it plays silence.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import numpy as np
import soxr

from personaplex.bench.report import Row, measure
from personaplex.cascade.backend import Cascade
from personaplex.cascade.ear import FRAMES_AT_ONCE, Pauses
from personaplex.cascade.engine import Recogniser, Synthesiser
from personaplex.cascade.registry import open_recogniser, open_synthesiser
from personaplex.cascade.session import ChatSession, chosen
from personaplex.cascade.speakable import speakable
from personaplex.cascade.worker import Worker
from personaplex.conversation import AgentEnded, AgentStarted, Event, Settings
from personaplex.errors import UsageError
from personaplex.persona import Parts, read_personas
from personaplex.units import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE

QUESTION = "What are your opening hours on Sunday please?"
PERSONA = "sage"
"""The one who says most."""

WORDS_PER_SECOND = 40

ANSWER = "We are open from nine to five on every day but Sunday, which is a day of rest for all of us here."
"""A sentence that takes a voice a while."""


def run(
    model: str | None,
    frames: int,
    compiled: bool | None = None,
    parts: Parts | None = None,
    pauses: Pauses | None = None,
) -> list[Row]:
    """Time `frames` questions and answers; rows carry the `engine` they measure."""
    if model is not None or compiled is not None:
        raise UsageError("this benchmark has no model of that kind; choose with --recogniser, --llm and --synthesiser")
    asked = parts or Parts()
    used = chosen(read_personas()[PERSONA], asked)
    recogniser, synthesiser = open_recogniser(used.recogniser or ""), open_synthesiser(used.synthesiser or "")
    try:
        question = _question(synthesiser, used, SAMPLE_RATE)
        rows = list(_hearing(recogniser, _question(synthesiser, used, recogniser.rate), used, frames))
        if pauses is not None:
            rows.append(Row("end of turn judged", measure(lambda: pauses.judge.probability(question), frames)))
        paces = [None, WORDS_PER_SECOND] if used.llm == "responder" else [None]
        for pace in paces:
            rows += asyncio.run(_answering(asked, used, synthesiser, frames, pace))
        rows += asyncio.run(_stopping(asked, used, recogniser, synthesiser, frames))
        rows.append(_interrupting(asked, used, frames))
    finally:
        recogniser.close()
        synthesiser.close()
    return rows


def _question(synthesiser: Synthesiser, used: Parts, rate: int) -> np.ndarray:
    said = [soxr.resample(piece.pcm, piece.rate, rate) for piece in synthesiser.say(QUESTION, used.voice)]
    return np.asarray(np.concatenate(said), np.float32)


def _hearing(recogniser: Recogniser, pcm: np.ndarray, used: Parts, n: int) -> Iterator[Row]:
    size = round(FRAME_SECONDS * recogniser.rate)
    frames, rest = [], []
    for _ in range(n + 1):
        listening = recogniser.listen(used.language)
        for start in range(0, len(pcm), size):
            began = time.perf_counter()
            listening.push(pcm[start : start + size])
            frames.append(_ms(began))
        began = time.perf_counter()
        listening.finish()
        rest.append(_ms(began))
        listening.close()
    per_utterance = -(-len(pcm) // size)
    extra: dict[str, object] = {"engine": used.recogniser}
    yield Row("hearing 80 ms", frames[per_utterance:], extra)  # the first utterance warms up
    yield Row("transcript after the last word", rest[1:], extra)


async def _answering(asked: Parts, used: Parts, synthesiser: Synthesiser, n: int, pace: int | None) -> list[Row]:
    times: dict[str, list[float]] = {}
    thinks = f"{used.llm}, {pace} words/s" if pace else str(used.llm)
    both = f"{thinks} + {used.synthesiser}"
    engines = {"first token": thinks, "whole answer": thinks}

    def note(name: str, began: float) -> None:
        times.setdefault(name, []).append(_ms(began))

    async with ChatSession(PERSONA, parts=asked) as session:

        async def ask(began: float) -> AsyncGenerator[str, None]:
            session.reset()
            first = True
            async with aclosing(session.say(QUESTION)) as tokens:
                async for token in tokens:
                    if pace:
                        await asyncio.sleep(1 / pace)
                    if first:
                        note("first token", began)
                    first = False
                    yield token

        async def by_sentence() -> None:
            began, first = time.perf_counter(), True
            async with aclosing(session.speak(ask(began))) as pieces:
                async for _ in pieces:
                    if first:
                        note("first audio, sentence by sentence", began)
                    first = False
            note("all audio, sentence by sentence", began)

        async def at_once() -> None:
            began = time.perf_counter()
            answer = speakable("".join([token async for token in ask(began)]))
            note("whole answer", began)
            await asyncio.to_thread(lambda: list(synthesiser.say(answer, used.voice, used.language)))
            note("first and all audio, whole answer at once", began)

        async for _ in session.speak("One."):  # it loads its voice
            pass
        for _ in range(n):
            await by_sentence()
            await at_once()
    return [Row(name, ms, {"engine": engines.get(name, both)}) for name, ms in times.items()]


async def _stopping(asked: Parts, used: Parts, recogniser: Recogniser, synthesiser: Synthesiser, n: int) -> list[Row]:
    """Each stage, stopped at a random moment of its work: until its thread is free, or its request closed."""
    draw = random.Random(0)
    pcm = np.tile(_question(synthesiser, used, recogniser.rate), 2)
    at_once = round(FRAMES_AT_ONCE * FRAME_SECONDS * recogniser.rate)
    times: dict[str, list[float]] = {"hearing": [], "thinking": [], "speaking": []}
    answer = " ".join(ANSWER.split() * 3)

    async def hear(worker: Worker) -> None:
        listening = await worker.run(recogniser.listen, used.language)
        try:
            for start in range(0, len(pcm), at_once):
                await worker.run(listening.push, pcm[start : start + at_once])
        finally:
            worker.do(listening.close)

    async def speak(worker: Worker) -> None:
        async with aclosing(worker.iterate(lambda: synthesiser.say(answer, used.voice, used.language))) as pieces:
            async for _ in pieces:
                pass

    for _ in range(n):
        for name, work in (("hearing", hear), ("speaking", speak)):
            worker = Worker("bench")
            task = asyncio.create_task(work(worker))
            await asyncio.sleep(draw.uniform(0.01, 0.2))
            began = time.perf_counter()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await worker.run(lambda: None)
            times[name].append(_ms(began))
            worker.close()
        async with ChatSession(PERSONA, parts=asked) as session:
            tokens = session.say(QUESTION)
            await anext(tokens)
            began = time.perf_counter()
            await tokens.aclose()
            times["thinking"].append(_ms(began))
    engines = {"hearing": used.recogniser, "thinking": used.llm, "speaking": used.synthesiser}
    return [Row(f"stopped: {name}", ms, {"engine": engines[name]}) for name, ms in times.items()]


def _interrupting(asked: Parts, used: Parts, n: int) -> Row:
    """A conversation is told to stop in the middle of an answer: until its user knows, and hears nothing more."""
    silence, ms = np.zeros(FRAME_SAMPLES, np.float32), []
    with Cascade(1, parts=asked) as backend, backend.open(Settings(prompt=PERSONA, seed=0)) as call:
        events = call.events()

        def until(kind: type[Event]) -> None:
            while not isinstance(events.get(FRAME_SECONDS), kind):
                call.send(silence)  # time passes

        for _ in range(n):
            call.send_text(QUESTION)
            until(AgentStarted)
            began = time.perf_counter()
            call.cancel()
            until(AgentEnded)
            ms.append(_ms(began))
    return Row("stopped: the conversation", ms, {"engine": f"{used.llm} + {used.synthesiser}"})


def _ms(began: float) -> float:
    return 1000 * (time.perf_counter() - began)
