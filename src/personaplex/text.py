"""Text tokens and text: the checkpoint's own SentencePiece model, and the role prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from personaplex.errors import CheckpointError, PersonaError

EPAD, BOS, EOS, PAD = 0, 1, 2, 3
"""Tokens that are not text: end of padding, begin, end, padding."""

CHARACTERS_PER_FRAME = 1.2
"""15 characters a second: somebody who speaks without hurry."""

TAG = "<system>"
"""Opens and closes a role prompt; ordinary text to the tokenizer."""

PROMPTS = {
    "assistant": "You are a helpful assistant. Answer questions clearly and concisely.",
    "focused": "You are a helpful assistant. Listen carefully to what the user says, then respond directly to their "
    "question or request. Stay on topic. Be concise.",
    "customer-service": "You are a customer service agent. Answer the customer question directly and helpfully. "
    "Do not change the subject.",
    "teacher": "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way.",
}
"""Role prompts by name; `teacher` is the reference's default, the others are the Swift port's."""


def wrapped(text: str) -> str:
    """A role prompt between its tags, spaces inside: the space before the closing tag matters to the tokenizer."""
    text = text.strip()
    if text.startswith(TAG) and text.endswith(TAG) and len(text) >= 2 * len(TAG):
        return text
    return f"{TAG} {text} {TAG}"


def role_text(prompt: str) -> str:
    """A preset's text, or `prompt` itself. Raises PersonaError for a lone name that is no preset."""
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if re.fullmatch(r"[a-z]+(-[a-z]+)*", prompt.strip()):
        raise PersonaError(
            f"unknown prompt {prompt[:80]!r}; known are {', '.join(PROMPTS)}; a role text has several words"
        )
    return prompt


class Tokenizer:
    """A SentencePiece model of `n_pieces`. Raises CheckpointError when the file is not one, or has another size."""

    def __init__(self, path: Path, n_pieces: int) -> None:
        try:
            self._pieces = SentencePieceProcessor(model_proto=path.read_bytes())
            found = self._pieces.vocab_size()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        except RuntimeError as error:
            raise CheckpointError(f"{path} is not a SentencePiece model") from error
        if found != n_pieces:
            raise CheckpointError(f"{path} has {found} pieces; the language model expects {n_pieces}")

    def role_tokens(self, text: str) -> list[int]:
        """The tokens of a role prompt, tags added; none for an empty text."""
        return list(self._pieces.encode(wrapped(text))) if text.strip() else []

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text as it is."""
        return list(self._pieces.encode(text))

    def spoken_tokens(self, text: str) -> list[int]:
        """A text as an agent says it, a token per frame: EPAD, a word's tokens, padding for as long as it lasts."""
        tokens: list[int] = []
        for word in text.split():
            own = [EPAD, *self.tokens(word)]
            tokens += own + [PAD] * (round((len(word) + 1) / CHARACTERS_PER_FRAME) - len(own))
        return tokens

    def piece(self, token: int) -> str:
        """A token as a person reads it in a log."""
        return str(self._pieces.id_to_piece(token))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of an agent's text stream, from its first word to its last."""
        stream = TextStream(self)
        return ("".join(stream.push(token) for token in tokens) + stream.flush()).strip()

    def byte(self, token: int) -> bytes | None:
        """The byte that a byte-fallback piece stands for, None for other pieces."""
        return bytes([int(self.piece(token)[3:5], 16)]) if self._pieces.is_byte(token) else None

    def is_text(self, token: int) -> bool:
        """False for padding, begin and end."""
        return token not in (EPAD, BOS, EOS, PAD) and not self._pieces.is_control(token)


class TextStream:
    """Text as it comes, token by token; bytes of one character are held until it is whole."""

    def __init__(self, tokenizer: Tokenizer, held: bytes = b"") -> None:
        self._tokenizer = tokenizer
        self._bytes = held

    @property
    def held(self) -> bytes:
        """The bytes of a character that is not whole yet."""
        return self._bytes

    def push(self, token: int) -> str:
        """The text that `token` completes; empty for padding. Control characters become spaces."""
        return "".join(c if c.isprintable() else " " for c in self._push(token))

    def _push(self, token: int) -> str:
        if not self._tokenizer.is_text(token):
            return ""
        byte = self._tokenizer.byte(token)
        if byte is None:
            return self.flush() + self._tokenizer.piece(token).replace("\u2581", " ")
        self._bytes += byte
        try:
            text = self._bytes.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            text = self._bytes.decode("utf-8", "replace")
        self._bytes = b""
        return text

    def flush(self) -> str:
        """What is left of a character that never became whole."""
        text, self._bytes = self._bytes.decode("utf-8", "replace"), b""
        return text
