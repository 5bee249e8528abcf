"""The cascade, stage by stage, and what streaming between them gains.

After the user's last word come: the silence that ends a turn (0.6 s in a conversation, not counted here), the rest of
the transcript, the language model's first sentence, and the making of its sound; then something is audible. Without
streaming it is all of the answer, and all of its sound: that is measured on the same question and answer. So what
streaming gains grows with the answer, and with the time that a token takes; the responder is no language model and
takes none, so it is measured a second time at 40 words a second, as a small model might speak. The last row is how long
a cancelled answer takes to be over for the event loop; a voice's thread ends after the piece that it is making.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import numpy as np
import soxr

from personaplex.bench.report import Row
from personaplex.cascade.engine import Recogniser, Synthesiser
from personaplex.cascade.registry import open_recogniser, open_synthesiser
from personaplex.cascade.session import ChatSession, chosen
from personaplex.cascade.speakable import speakable
from personaplex.errors import UsageError
from personaplex.persona import Parts, read_personas
from personaplex.units import FRAME_SECONDS

QUESTION = "What are your opening hours on Sunday please?"
PERSONA = "sage"
"""The one who says most."""

WORDS_PER_SECOND = 40


def run(model: str | None, frames: int, compiled: bool | None = None, parts: Parts | None = None) -> list[Row]:
    """Time `frames` questions and answers; rows carry the `engine` they measure."""
    if model is not None or compiled is not None:
        raise UsageError("this benchmark has no model of that kind; choose with --recogniser, --llm and --synthesiser")
    asked = parts or Parts()
    used = chosen(read_personas()[PERSONA], asked)
    recogniser, synthesiser = open_recogniser(used.recogniser or ""), open_synthesiser(used.synthesiser or "")
    try:
        rows = list(_hearing(recogniser, synthesiser, used, frames))
        paces = [None, WORDS_PER_SECOND] if used.llm == "responder" else [None]
        for pace in paces:
            rows += asyncio.run(_answering(asked, used, synthesiser, frames, pace))
    finally:
        recogniser.close()
        synthesiser.close()
    return rows


def _hearing(recogniser: Recogniser, synthesiser: Synthesiser, used: Parts, n: int) -> Iterator[Row]:
    said = [soxr.resample(piece.pcm, piece.rate, recogniser.rate) for piece in synthesiser.say(QUESTION, used.voice)]
    pcm = np.asarray(np.concatenate(said), np.float32)
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

        async def cancelled() -> None:
            pieces = session.speak(ask(time.perf_counter()))
            await anext(pieces)
            began = time.perf_counter()
            await pieces.aclose()
            note("cancelled after the first audio", began)

        async for _ in session.speak("One."):  # it loads its voice
            pass
        for _ in range(n):
            await by_sentence()
            await at_once()
            await cancelled()
    return [Row(name, ms, {"engine": engines.get(name, both)}) for name, ms in times.items()]


def _ms(began: float) -> float:
    return 1000 * (time.perf_counter() - began)
