"""One call on `/api/chat`: what the caller sends goes in, what the agent says comes out, and every end has a reason."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress

from starlette.datastructures import QueryParams
from starlette.websockets import WebSocket, WebSocketDisconnect

from personaplex.conversation import AgentText, Audio, Ended, EndReason, Error, Event, Ready
from personaplex.errors import Closed, PersonaPlexError, Unavailable, UsageError
from personaplex.server.log import tell
from personaplex.server.moshi import wire
from personaplex.server.moshi.ear import Ear
from personaplex.server.moshi.opus import OpusWriter
from personaplex.server.moshi.query import read_query
from personaplex.server.moshi.wire import Kind
from personaplex.server.refusals import close_reason, message, refusal
from personaplex.server.service import Service
from personaplex.server.session import Session

CLIENT = "moshi"
"""What these callers are called in numbers and logs."""

MOST_MESSAGE_BYTES = 1 << 16
"""Of one message: a second of Opus at its highest rate."""

MOST_TEXT = 2000
"""Characters of a text that is typed."""


class _Gone(Exception):  # noqa: N818 - no mistake of ours
    """The caller has left, or takes nothing any more: there is nobody to tell."""


class _Over(Exception):  # noqa: N818
    """The call ends, and the caller is told with `code` and `reason`."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


async def answer(socket: WebSocket, service: Service) -> None:
    """Answer a call. Whatever goes wrong is told in an error message and a close code; nothing is raised."""
    await socket.accept()
    line = _Line(socket, service)
    try:
        with closing(await _open(socket.query_params, service)) as session:
            await _Call(session, line, service.settings.idle_seconds).talk()
    except _Gone:
        pass
    except _Over as over:
        await line.close(over.code, over.reason)
    except PersonaPlexError as error:
        await line.refuse(error)
    except Exception as error:
        tell("call failed", error=error)
        await line.refuse(error)


async def _open(query: QueryParams, service: Service) -> Session:
    """The conversation that an address asks for. Raises what makes it impossible, which is counted."""
    try:
        settings = read_query(query, service)
    except PersonaPlexError as error:
        service.refused(error, CLIENT)
        raise
    record = query.get("record", "").lower() in ("1", "true")  # ours; no client of theirs sends it
    persona = None if "text_prompt" in query else service.settings.persona
    await service.wait_for_room("duplex")
    return service.open("duplex", settings, client=CLIENT, persona=persona, record=record)


class _Line:
    """The socket, which may be gone at any moment, or so slow that it is given up."""

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket = socket
        self._patience = service.settings.unsent_seconds
        self._slow_readers = service.metrics.slow_readers

    async def send(self, data: bytes) -> None:
        """Send a message. Raises _Gone."""
        try:
            async with asyncio.timeout(self._patience):
                await self._socket.send_bytes(data)
        except TimeoutError:
            self._slow_readers.inc()
            tell("slow reader", client=CLIENT)
            raise _Gone from None
        except (WebSocketDisconnect, RuntimeError):  # the second: it was closed meanwhile
            raise _Gone from None

    async def receive(self) -> bytes:
        """The next message that is binary and not empty, as the reference takes them. Raises _Gone."""
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                raise _Gone
            if data := event.get("bytes"):
                return bytes(data)

    async def close(self, code: int, reason: str) -> None:
        """Close, if there is somebody to close it to."""
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(self._patience):
                await self._socket.close(code, reason)

    async def refuse(self, error: BaseException) -> None:
        """Say what is wrong, and close."""
        with suppress(_Gone):
            await self.send(wire.error(message(error)))
            await self.close(refusal(error).close_code, close_reason(error))


class _Call:
    def __init__(self, session: Session, line: _Line, idle_seconds: float) -> None:
        self._session = session
        self._line = line
        self._idle_seconds = idle_seconds
        self._ear = Ear(session)
        self._opus = OpusWriter()
        self._ready = asyncio.Event()
        self._last_error: PersonaPlexError | None = None

    async def talk(self) -> None:
        """Speak and hear until something ends it, and raise that; neither of both ends in another way."""
        work = (self._speak(), self._listen(), self._hear())  # the first says best why it ended, if several did
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            ended = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            task.result()

    async def _hear(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._idle_seconds):
                    data = await self._line.receive()
            except TimeoutError:
                raise UsageError(f"nothing came for {self._idle_seconds:g} s; call again") from None
            if len(data) > MOST_MESSAGE_BYTES:
                raise _Over(1009, f"a message of {len(data)} bytes; at most {MOST_MESSAGE_BYTES} are taken")
            with suppress(Closed):  # its end is told by the events
                if data[0] == Kind.AUDIO:
                    await self._ear.hear(data[1:])
                elif data[0] == Kind.TEXT:
                    await self._type(data[1:])

    async def _type(self, data: bytes) -> None:
        """What the caller typed; if it cannot be taken up, the call goes on."""
        try:
            text = data.decode()
            if len(text) > MOST_TEXT:
                raise UsageError(f"the text has {len(text)} characters; at most {MOST_TEXT} are taken at once")
            self._session.send_text(text)
        except UnicodeDecodeError:
            await self._line.send(wire.error("the text is not UTF-8"))
        except Closed:
            raise
        except PersonaPlexError as error:
            await self._line.send(wire.error(message(error)))

    async def _speak(self) -> None:
        async for event in self._session.events():
            await self._tell(event)

    async def _tell(self, event: Event) -> None:
        if isinstance(event, Audio):
            await self._ear.answered()
            await self._line.send(wire.audio(self._opus.write(event.pcm)))
        elif isinstance(event, AgentText):
            await self._line.send(wire.text(event.text))
        elif isinstance(event, Ready) and not self._ready.is_set():
            self._ready.set()
            for data in (wire.HANDSHAKE, *(wire.audio(page) for page in self._opus.head())):
                await self._line.send(data)
        elif isinstance(event, Error):
            self._last_error = event.error
            await self._line.send(wire.error(message(event.error)))
        elif isinstance(event, Ended):
            await self._end(event.reason)

    async def _listen(self) -> None:
        await self._ready.wait()
        with suppress(Closed):  # its end is told by the events
            await self._ear.listen()

    async def _end(self, reason: EndReason) -> None:
        if reason == "error" and self._last_error is not None:
            raise _Over(refusal(self._last_error).close_code, close_reason(self._last_error))
        if reason == "shutdown":
            raise Unavailable("the server is about to stop; call again in a moment")
        raise _Over(1008 if reason == "unread" else 1000, reason)
