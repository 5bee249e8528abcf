"""Language models behind a server that speaks OpenAI's chat protocol: Ollama, llama.cpp, vLLM, mlx-lm, and others.

Base URL, model and key are all it needs. The client is the `openai` package.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from personaplex.cascade.engine import Call, EngineSpec, Message, Tool, first_line
from personaplex.cascade.reasoning import Spoken
from personaplex.errors import EngineError, UsageError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OLLAMA_URL = "http://localhost:11434/v1"
PATIENCE_SECONDS = 30.0
"""How long the next piece of an answer may take."""

_SHOWN_MODELS = 8


class Chat:
    """A model of a server. `key`: for servers that want one, default `OPENAI_API_KEY`.

    `url` (default `OPENAI_BASE_URL`) ends in /v1. `patience_seconds`: how long the next piece may take.
    Raises UsageError without a model or a URL.
    """

    def __init__(
        self,
        model: str | None = None,
        url: str | None = None,
        key: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        url = url or os.environ.get("OPENAI_BASE_URL")
        if not model:
            raise UsageError("which model? name it after a colon, such as ollama:llama3.2:1b or chat:MODEL")
        if not url or not url.startswith(("http://", "https://")):
            raise UsageError(
                f"the chat server's address is {url!r}; expected an http address that ends in /v1, as OPENAI_BASE_URL"
            )
        self.name = model
        self._url = url
        self._key = key or os.environ.get("OPENAI_API_KEY") or "none"
        self._patience = patience_seconds
        self._is_ollama = url.rstrip("/") == OLLAMA_URL
        self._clients: dict[asyncio.AbstractEventLoop, AsyncOpenAI] = {}

    def _client(self) -> AsyncOpenAI:
        """The one of this event loop: connections belong to a loop."""
        from openai import AsyncOpenAI

        loop = asyncio.get_running_loop()
        self._clients = {known: client for known, client in self._clients.items() if not known.is_closed()}
        if loop not in self._clients:
            self._clients[loop] = AsyncOpenAI(
                base_url=self._url, api_key=self._key, timeout=self._patience, max_retries=0
            )
        return self._clients[loop]

    async def check(self) -> None:
        """Ask for the list of models. Raises EngineError when the server is down or does not have the model."""
        with self._told():
            async with asyncio.timeout(self._patience):
                known = [model.id async for model in self._client().models.list()]
        if self.name not in known and f"{self.name}:latest" not in known:
            remedy = f"run: ollama pull {self.name}" if self._is_ollama else "choose one of those, or load it there"
            more = ", ..." if len(known) > _SHOWN_MODELS else ""
            there = ", ".join(known[:_SHOWN_MODELS]) + more if known else "none"
            raise EngineError(
                f"the server at {self._url} does not have the model {self.name!r} (it has: {there}); {remedy}"
            )

    async def answer(
        self,
        messages: Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """Pieces as the server sends them, without what the model thinks, in `content` or in a field of its own.

        Raises EngineError as `consult` does.
        """
        told = self.consult(messages, temperature=temperature, max_tokens=max_tokens, seed=seed)
        async with aclosing(told) as pieces:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield piece

    async def consult(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        choice: str = "auto",
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[str | Call, None]:
        """The same, and after the text the tools that are to be called.

        Raises EngineError when the server is down, too slow, ends in the middle, or its model says nothing before
        `max_tokens` are used up.
        """
        options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        wanted: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if tools:
            wanted |= {"tools": [_as_chat(tool) for tool in tools], "tool_choice": _choice(choice)}
        sent: list[Any] = [message.as_chat() for message in messages]
        spoken, is_silent, finished, stream = Spoken(), True, None, None
        calls = _Calls()
        try:
            with self._told():
                async with asyncio.timeout(self._patience):
                    stream = await self._client().chat.completions.create(
                        model=self.name, messages=sent, stream=True, **wanted
                    )
                pieces = stream.__aiter__()
                while True:
                    async with asyncio.timeout(self._patience):
                        chunk = await anext(pieces, None)
                    if chunk is None:
                        break
                    for chosen in chunk.choices:
                        finished = finished or chosen.finish_reason
                        for part in chosen.delta.tool_calls or ():
                            calls.push(part)
                        if said := spoken.push(chosen.delta.content or ""):
                            is_silent = False
                            yield said
            if said := spoken.flush():
                yield said
            elif is_silent and not calls and finished == "length":
                raise EngineError(
                    f"{self.name} used up its {max_tokens or 'allowed'} tokens and said nothing; if it reasons, turn "
                    "that off at its server, or give the persona more max_tokens"
                )
            if finished is None:
                raise EngineError(f"the server at {self._url} ended in the middle of an answer; look at its log")
            for call in calls.whole():
                yield call
        finally:
            if stream is not None:
                await stream.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong with the server, as one line."""
        import openai

        try:
            yield
        except (TimeoutError, openai.APITimeoutError) as error:
            raise EngineError(
                f"{self.name} at {self._url} said nothing for {self._patience:g} s; is it loading, or too large?"
            ) from error
        except openai.APIConnectionError as error:
            remedy = "start it: ollama serve" if self._is_ollama else "is it running, and the address right?"
            raise EngineError(f"no chat server answers at {self._url}; {remedy}") from error
        except openai.APIStatusError as error:
            raise EngineError(
                f"the server at {self._url} refused ({error.status_code}): {first_line(error)}"
            ) from error
        except EngineError:
            raise
        except Exception as error:  # also the transport's own, whichever library that is
            raise EngineError(f"the server at {self._url} broke off: {first_line(error)}") from error

    async def close(self) -> None:
        """Close the connections of this event loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()


class _Calls:
    """Calls of tools, put together from the parts that they are streamed in."""

    def __init__(self) -> None:
        self._parts: dict[int, Call] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def push(self, part: Any) -> None:
        """Take what a chunk holds of a call: an id and a name first, then the arguments piece by piece."""
        known = self._parts.get(part.index, Call("", "", ""))
        function = part.function
        name, arguments = (function.name or "", function.arguments or "") if function is not None else ("", "")
        self._parts[part.index] = Call(known.id or part.id or "", known.name or name, known.arguments + arguments)

    def whole(self) -> list[Call]:
        """All of them; one whose server gave it no id has its number."""
        return [
            call._replace(id=call.id or f"call_{index}", arguments=call.arguments or "{}")
            for index, call in sorted(self._parts.items())
        ]


def _as_chat(tool: Tool) -> dict[str, Any]:
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _choice(choice: str) -> Any:
    return choice if choice in ("auto", "none", "required") else {"type": "function", "function": {"name": choice}}


def _ollama(model: str | None = None, url: str | None = None, patience_seconds: float = PATIENCE_SECONDS) -> Chat:
    return Chat(model, url or OLLAMA_URL, "ollama", patience_seconds)


_INSTALL = "pip install 'personaplex-mlx[cascade]'"

CHAT = EngineSpec(
    "chat",
    "thinker",
    Chat,
    "any server that speaks OpenAI's chat protocol (OPENAI_BASE_URL, OPENAI_API_KEY)",
    _INSTALL,
    "Apache-2.0 (the openai client)",
    modules=("openai",),
)
OLLAMA = EngineSpec(
    "ollama",
    "thinker",
    _ollama,
    f"Ollama at {OLLAMA_URL}",
    f"{_INSTALL}, and Ollama itself",
    "Apache-2.0 (the openai client); MIT (Ollama)",
    modules=("openai",),
)
