"""A server under callers: N of them at once over real sockets, each in real time, as a page or a telephone would call.

Every 80 ms a caller sends a frame of sound and should have its answer before the next: 12.5 steps a second for each
caller, and one step for all of them where the server steps them together. So the time of a tick stays the same as N
grows until the step is longer than 80 ms; from there on every tick is late, and frames are shed. That N is what a
machine holds, and it cannot be more than 80 ms over the time of a step with N slots (`bench engine`).

All callers connect, wait until every one of them is ready, and begin at the same moment, which is the hardest case.
A tick is the time from sending a frame until its answer is here; it is missed when that takes over 80 ms. A player
starts 40 ms after the first answer, as the page does, and plays 80 ms every 80 ms; an underrun is an answer that comes
after its turn, and from then on it plays so much later. First audio is from the first frame sent to the first sound
back. Answers that are not here `DRAIN_SECONDS` after the last frame are missing (deficit) and count as missed, as do
frames that the server shed. Callers who were refused are told, and counted in the miss rate with all their frames.
`send_p99_ms` is how late this program itself was: beyond a few milliseconds it, and not the server, was measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from personaplex.audio import pcm16
from personaplex.bench.plot import svg
from personaplex.bench.report import Row
from personaplex.bench.server_process import ServerProcess
from personaplex.errors import EngineError, UsageError
from personaplex.units import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE

DRAIN_SECONDS = 2.0
CUSHION_SECONDS = 0.04
READY_SECONDS = 120.0
CALLERS = (1, 2, 4)


@dataclass
class Caller:
    """What one caller saw. Times are of `time.perf_counter`, frames are counted from 0."""

    refused: str | None = None
    connected: float = 0.0
    ready: float = 0.0
    """Or when it was refused."""
    sent: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    received: list[float] = field(default_factory=list)
    """When the answer to each frame came; not a number where the server shed the frame."""

    @property
    def opening(self) -> float:
        """Milliseconds from dialling until it was ready, or refused."""
        return 1000 * (self.ready - self.connected)

    @property
    def ticks(self) -> list[float]:
        """Milliseconds from each frame to its answer, of those that have one."""
        both = zip(self.sent, self.received, strict=False)
        return [1000 * (back - out) for out, back in both if not math.isnan(back)]

    @property
    def shed(self) -> int:
        """Frames that the server did not hear."""
        return sum(map(math.isnan, self.received))

    @property
    def underruns(self) -> int:
        """Answers that came after their turn to be played."""
        n, due = 0, None
        for at in filter(math.isfinite, self.received):
            if due is None:
                due = at + CUSHION_SECONDS
            elif at > due:
                n += 1
            due = max(at, due) + FRAME_SECONDS
        return n


def run(
    model: str | None,
    frames: int,
    compiled: bool | None = None,
    callers: Sequence[int] = CALLERS,
    url: str | None = None,
    token: str | None = None,
) -> list[Row]:
    """Call a server with each number of callers, for `frames` frames; it is started with `model`, or running at `url`.

    Raises UsageError for neither or both, EngineError for a server that does not answer.
    """
    if compiled is not None:
        raise UsageError("a server compiles as it sees fit; --compile is for `bench load` and `bench engine`")
    if (model is None) == (url is None):
        raise UsageError("name a model to serve with --model, or a server that runs with --url")
    server: AbstractContextManager[str] = nullcontext(url or "")
    if model is not None:
        server = ServerProcess(["--model", model, "--backend", "duplex", "--slots", str(max(callers))])
    with server as address:
        return [row for n in callers for row in rows(n, asyncio.run(call(address, n, frames, token)), frames)]


def picture(measured: Sequence[dict[str, object]]) -> str:
    """Percentiles of the tick by number of callers, as SVG; `measured` are the rows of a report."""
    ticks = [row for row in measured if row["name"] == "tick"]
    if not ticks:
        raise EngineError("nobody was served, so there is nothing to draw")
    names = ("p50_ms", "p95_ms", "p99_ms")
    curves = {
        name.removesuffix("_ms"): [(float(str(r["callers"])), float(str(r[name]))) for r in ticks] for name in names
    }
    return svg("A frame's way there and back, by callers at once", "callers", "ms", curves, 1000 * FRAME_SECONDS)


def rows(n: int, calls: Sequence[Caller], frames: int) -> list[Row]:
    """What `n` callers saw, of whom each wanted `frames` answers; the first row counts what went wrong."""
    served = [one for one in calls if one.refused is None]
    ticks = [ms for one in served for ms in one.ticks]
    shed = sum(one.shed for one in served)
    missing = sum(frames - len(one.received) for one in served)
    late = sum(ms > 1000 * FRAME_SECONDS for ms in ticks)
    refused = len(calls) - len(served)
    about: dict[str, object] = {
        "callers": n,
        "refused": refused,
        "missed": round((late + shed + missing + refused * frames) / (n * frames), 4),
        "underruns": sum(one.underruns for one in served),
        "deficit": missing,
        "shed": shed,
        "send_p99_ms": _percentile([1000 * late for one in served for late in one.late], 99),
    }
    heard = [next(filter(math.isfinite, one.received), None) for one in served]
    measured = {
        "tick": ticks,
        "first audio": [1000 * (at - one.sent[0]) for at, one in zip(heard, served, strict=True) if at is not None],
        "ready": [one.opening for one in served],
        "refused": [one.opening for one in calls if one.refused is not None],
    }
    found = [Row(name, ms, {"callers": n}) for name, ms in measured.items() if ms]
    found[0].extra.update(about)
    return found


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 3) if values else None


async def call(address: str, n: int, frames: int, token: str | None = None) -> list[Caller]:
    """`n` callers at once, for `frames` frames each."""
    everybody = asyncio.Barrier(n)
    return list(await asyncio.gather(*(_one(address, i, frames, token, everybody) for i in range(n))))


async def _one(address: str, number: int, frames: int, token: str | None, everybody: asyncio.Barrier) -> Caller:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    seen = Caller(connected=time.perf_counter())
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    target = address.replace("http", "ws", 1).rstrip("/") + "/v1/realtime?mode=duplex"
    try:
        async with connect(target, additional_headers=headers, max_size=None, compression=None, proxy=None) as socket:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    await _until_ready(socket, seen, number)
            except ConnectionClosed as closed:
                seen.refused = seen.refused or f"closed with {closed.rcvd.code if closed.rcvd else 1006}"
                seen.ready = time.perf_counter()
            await everybody.wait()
            if seen.refused is None:
                with suppress(ConnectionClosed):  # the answers that never came tell it
                    await _talk(socket, seen, number, frames)
    except (OSError, InvalidStatus, TimeoutError) as error:
        await everybody.abort()
        why = f"{error}; is it running, and is that its token?"
        raise EngineError(f"the server at {address} does not take calls: {why}") from error
    except asyncio.BrokenBarrierError:
        seen.refused = "another caller could not connect"
    return seen


async def _until_ready(socket: Any, seen: Caller, number: int) -> None:
    format = {"type": "audio/pcm", "rate": SAMPLE_RATE}
    session = {"type": "realtime", "seed": number, "audio": {"input": {"format": format}, "output": {"format": format}}}
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "session.created":
            await socket.send(json.dumps({"type": "session.update", "session": session}))
            await socket.send(json.dumps({"type": "session.start"}))
        elif event["type"] == "error":
            seen.refused, seen.ready = str(event["error"]["message"]), time.perf_counter()
            return
        elif event["type"] == "session.ready":
            seen.ready = time.perf_counter()
            return


async def _talk(socket: Any, seen: Caller, number: int, frames: int) -> None:
    """Send every 80 ms; listen meanwhile, and a while longer."""
    listening = asyncio.create_task(_listen(socket, seen, frames))
    voice = np.random.default_rng(number).normal(0, 0.05, (frames, FRAME_SAMPLES)).astype(np.float32)
    began = time.perf_counter()
    try:
        for i, pcm in enumerate(voice):
            due = began + i * FRAME_SECONDS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            audio = base64.b64encode(pcm16(pcm).tobytes()).decode()
            seen.sent.append(time.perf_counter())
            seen.late.append(seen.sent[-1] - due)
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        await asyncio.wait([listening], timeout=DRAIN_SECONDS)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _listen(socket: Any, seen: Caller, frames: int) -> None:
    samples = 0
    async for message in socket:
        event = json.loads(message)
        if event["type"] in ("response.output_audio.delta", "response.audio.delta"):
            samples += len(base64.b64decode(event["delta"])) // 2
            while samples >= FRAME_SAMPLES:
                samples -= FRAME_SAMPLES
                seen.received.append(time.perf_counter())
            if len(seen.received) >= frames:
                return
        elif event["type"] == "input_audio_buffer.overrun":
            seen.received += [math.nan] * round(int(event["dropped_ms"]) / (1000 * FRAME_SECONDS))
