"""What is remembered of a conversation by turns, while answers are made, cut off, edited and taken back."""

from __future__ import annotations

from collections.abc import Callable

from personaplex.by_turns import Message
from personaplex.cascade.session import ChatSession
from personaplex.errors import PersonaPlexError, UsageError


class Memory:
    """The past of one `ChatSession`, in its event loop. `said`: what was audible of the answer so far.

    Whatever changes the past waits for the end of an answer that is being made. `fail` is told what could not be done.
    """

    def __init__(self, session: ChatSession, fail: Callable[[PersonaPlexError], None]) -> None:
        self.said = ""
        self.is_answering = False
        self.is_dropped = False
        """Whether the last answer was."""
        self._session = session
        self._fail = fail
        self._n_before = 0
        self._index: int | None = None  # of the last answer among the messages
        self._edits: list[Callable[[], None]] = []

    def begin(self) -> None:
        """An answer begins."""
        self.said, self.is_answering, self.is_dropped = "", True, False
        self._n_before, self._index = len(self._session.history), None

    def ask(self, text: str) -> None:
        """It is asked for now: the question, if there is one, is the next message, and it the one after."""
        self._n_before = len(self._session.history)
        self._index = self._n_before + bool(text)

    def drop(self, *, unheard: bool) -> None:
        """It ends here; `unheard`, it is as if it had not been asked for either."""
        self.is_dropped = True
        if unheard:
            self._session.rewind(self._n_before)
        elif self._index is not None:
            self._session.heard(self.said.strip(), self._index)

    def end(self) -> None:
        """The answer is over."""
        self.is_answering = False
        while self._edits:
            self._edits.pop(0)()

    def add(self, message: Message) -> None:
        """Put a message at the end."""
        self._edit(lambda: self._session.add(message))

    def forget(self, message: Message) -> None:
        """Take the last such message out."""
        self._edit(lambda: self._forget(message))

    def truncate(self, text: str) -> None:
        """Of the last answer only `text` was heard; nothing, if another is being made."""
        index = self._index
        if not self.is_answering and index is not None and index < len(self._session.history):
            self._session.heard(text, index)

    def _edit(self, edit: Callable[[], None]) -> None:
        if self.is_answering:
            self._edits.append(edit)
        else:
            edit()

    def _forget(self, message: Message) -> None:
        try:
            at = self._session.forget(message)
        except UsageError as error:
            self._fail(error)
            return
        if self._index is not None and at <= self._index:
            self._index = self._index - 1 if at < self._index else None
