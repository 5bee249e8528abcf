"""Language models in this process: whatever `mlx-lm` runs, from a folder or the Hugging Face Hub.

One thread computes for all conversations, because MLX's streams belong to the thread that made them; answers that are
given at the same time take turns, token by token, and each draws with a key of its own.
"""

from __future__ import annotations

import random
import re
import threading
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personaplex.cascade.engine import EngineSpec, Message, first_line
from personaplex.cascade.reasoning import Spoken, begins_thinking
from personaplex.cascade.worker import MLXWorker
from personaplex.errors import EngineError, PersonaPlexError, UsageError

if TYPE_CHECKING:
    import mlx.core as mx

CONTEXT_TOKENS = 4096
"""Of the conversation and its answer, where the model's own context is not smaller."""

_ANSWER_TOKENS = 512
_PREFILL_TOKENS = 256
"""Read at once; between two such steps the work can be stopped."""

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class MLXLanguageModel:
    """A `model` by its folder or Hub repository. Of a conversation it is told at most `context_tokens`, newest first.

    Raises UsageError without a model. It is loaded by `check`, or by the first answer.
    """

    def __init__(self, model: str | None = None, context_tokens: int = CONTEXT_TOKENS) -> None:
        if not model:
            raise UsageError("which model? name a folder or a Hub repository after a colon, such as mlx-lm:OWNER/NAME")
        self.name = model
        self._context = context_tokens
        self._worker = MLXWorker("mlx-lm")
        self._loaded: tuple[Any, Any] | None = None

    async def check(self) -> None:
        """Load it. Raises EngineError when it is not there, cannot be read, or is no chat model."""
        await self._worker.run(self._load)

    async def answer(
        self,
        messages: Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """Pieces as they are drawn, without what the model thinks; no temperature is the likeliest token.

        `max_tokens` (default 512) counts those that are said; thoughts end with the context. Raises EngineError.
        """
        stop = threading.Event()
        draw = _sampler(temperature or 0.0, random.getrandbits(31) if seed is None else seed)
        generate = partial(self._generate, list(messages), draw, max_tokens or _ANSWER_TOKENS, stop)
        try:
            async with aclosing(self._worker.iterate(generate)) as pieces:
                async for piece in pieces:
                    yield piece
        except PersonaPlexError:
            raise
        except Exception as error:
            raise EngineError(f"the language model {self.name} failed: {first_line(error)}") from error
        finally:
            stop.set()

    async def close(self) -> None:
        """Free the model once the token that is being computed is done."""
        self._worker.do(self._free)
        self._worker.close()

    # The worker's thread.

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from mlx_lm import load

            if not Path(self.name).expanduser().is_dir() and not _REPO.fullmatch(self.name):
                raise EngineError(f"there is no folder {self.name}, nor is that a Hub repository (owner/name)")
            try:
                model, tokenizer, config = load(str(Path(self.name).expanduser()), return_config=True)
            except Exception as error:  # the Hub's, the files' or the library's own
                raise EngineError(f"the language model {self.name} cannot be loaded: {first_line(error)}") from error
            if not tokenizer.has_chat_template:
                raise EngineError(f"{self.name} has no chat template; choose a model that was trained to converse")
            longest = config.get("max_position_embeddings")
            self._context = min(self._context, longest) if isinstance(longest, int) else self._context
            self._loaded = model, tokenizer
        return self._loaded

    def _free(self) -> None:
        import mlx.core as mx

        self._loaded = None
        mx.clear_cache()

    def _generate(
        self, messages: list[Message], draw: Callable[[mx.array], mx.array], max_tokens: int, stop: threading.Event
    ) -> Iterator[str]:
        from mlx_lm import stream_generate

        def go_on(*_: int) -> None:
            if stop.is_set():
                raise EngineError("nobody waits for this answer any more")

        model, tokenizer = self._load()
        max_tokens = min(max_tokens, self._context // 2)
        text, prompt = self._prompt(tokenizer, messages, self._context - max_tokens)
        spoken, n_said = Spoken(thinks=begins_thinking(text)), 0
        for made in stream_generate(
            model,
            tokenizer,
            prompt,
            max_tokens=self._context - len(prompt),
            sampler=draw,
            prefill_step_size=_PREFILL_TOKENS,
            prompt_progress_callback=go_on,
        ):
            if said := spoken.push(made.text):
                n_said += 1
                yield said
            if n_said == max_tokens:
                break
        if said := spoken.flush():
            yield said
        elif not n_said and spoken.thinks:
            raise EngineError(
                f"{self.name} thought to its end, or until {self._context} tokens were full, and said nothing"
            )

    def _prompt(self, tokenizer: Any, messages: list[Message], most: int) -> tuple[str, list[int]]:
        """As text and as tokens, at most so many: what was said first is left out first, question and answer together.

        Raises EngineError when the last question alone is too long.
        """
        roles = [message.as_chat() for message in messages if message.role == "system"]
        turns = [message.as_chat() for message in messages if message.role != "system"]
        starts = [i for i, turn in enumerate(turns) if turn["role"] == "user"] or [0]  # nobody has asked yet

        def written(first: int) -> tuple[str, list[int]]:
            text = tokenizer.apply_chat_template(
                [*roles, *turns[starts[first] :]], tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            return text, tokenizer.encode(text, add_special_tokens=False)

        first = bisect_left(range(len(starts)), True, key=lambda first: len(written(first)[1]) <= most)
        if first == len(starts):
            raise EngineError(f"the question is too long for {self.name}: with its role it may take {most} tokens")
        return written(first)


def _sampler(temperature: float, seed: int) -> Callable[[mx.array], mx.array]:
    """Draws tokens from log-probabilities [1, vocabulary], with nothing shared with who else draws."""
    import mlx.core as mx

    keys: list[mx.array] = []

    def draw(logprobs: mx.array) -> mx.array:
        if not temperature:
            return mx.argmax(logprobs, axis=-1)
        before = keys.pop() if keys else mx.random.key(seed)
        after, now = mx.random.split(before)
        keys.append(after)
        return mx.random.categorical(logprobs / temperature, key=now)

    return draw


ENGINE = EngineSpec(
    "mlx-lm",
    "thinker",
    MLXLanguageModel,
    "a model in this process, by its folder or Hub repository",
    "pip install 'personaplex-mlx[mlx-lm]'",
    "MIT; the model has its own",
    modules=("mlx_lm",),
    remark="run with tiny random models only, not with real weights",
)
