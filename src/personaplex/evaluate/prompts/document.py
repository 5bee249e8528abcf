"""A YAML document whose parts know their line, so that what is wrong with one can be said with its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from personaplex.errors import UsageError

_KINDS: dict[type[yaml.Node], str] = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list"}


class Part:
    """One value of a document: where it stands, and what it is taken for. Every reader raises UsageError."""

    def __init__(self, file: str, path: str, node: yaml.Node) -> None:
        self._file = file
        self.path = path
        self._node = node

    @property
    def where(self) -> str:
        """File, line and path: `questions.yaml:7: questions[0].say`."""
        place = f"{self._file}:{self._node.start_mark.line + 1}"
        return f"{place}: {self.path}" if self.path else place

    def fail(self, message: str) -> NoReturn:
        """Raise UsageError about this value."""
        raise UsageError(f"{self.where}: {message}")

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self._node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self._node, yaml.MappingNode)

    def _expected(self, what: str) -> NoReturn:
        node = self._node
        found = _KINDS.get(type(node)) or (f"{node.value!r}" if node.value else "nothing")
        self.fail(f"expected {what}, found {found}")

    def mapping(self, *known: str) -> dict[str, Part]:
        """A mapping with some of the `known` keys (any, if none are named), each once."""
        if not isinstance(self._node, yaml.MappingNode):
            self._expected("a mapping")
        found: dict[str, Part] = {}
        for key, value in self._node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            part = Part(self._file, f"{self.path}.{name}".removeprefix("."), value)
            line = Part(self._file, self.path, key)
            if not isinstance(key, yaml.ScalarNode):
                line.fail("a key must be a word")
            if known and name not in known:
                line.fail(f"unknown key {name!r}; known are {', '.join(known)}")
            if name in found:
                line.fail(f"the key {name!r} stands there twice")
            found[name] = part
        return found

    def items(self) -> list[Part]:
        """A list's values."""
        if not isinstance(self._node, yaml.SequenceNode):
            self._expected("a list")
        return [Part(self._file, f"{self.path}[{i}]", node) for i, node in enumerate(self._node.value)]

    def text(self) -> str:
        """A text as it is written: `7`, `no` and `12:30` are texts too, whatever YAML makes of them."""
        if not isinstance(self._node, yaml.ScalarNode) or not self._node.value.strip():
            self._expected("a text")
        return str(self._node.value)

    def whole(self, least: int) -> int:
        """A whole number, `least` or more."""
        value = self._node.value
        digits = value.removeprefix("-") if isinstance(self._node, yaml.ScalarNode) else ""
        if not (digits.isascii() and digits.isdigit()) or int(value) < least:
            self._expected(f"a whole number, {least} or more")
        return int(value)

    def seconds(self) -> float:
        """A number of seconds above 0."""
        try:
            value = float(self._node.value)
        except (TypeError, ValueError):
            value = 0.0
        if not 0 < value < 1e5:
            self._expected("a number of seconds above 0")
        return value

    def truth(self) -> bool:
        """True or false."""
        words = {"true": True, "false": False, "yes": True, "no": False}
        value = self._node.value.lower() if isinstance(self._node, yaml.ScalarNode) else ""
        if value not in words:
            self._expected("true or false")
        return words[value]

    def one_of(self, known: Sequence[str]) -> str:
        """One of the `known` texts."""
        value = self.text()
        if value not in known:
            self.fail(f"unknown {value!r}; there are {', '.join(known)}")
        return value


def read_document(path: Path) -> Part:
    """The one document of a YAML file. Raises UsageError for a file that cannot be read, or is no YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; name a YAML file of questions") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: {error.reason}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{path}:{line}: no YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: no YAML: {str(error).splitlines()[0]}") from error
    if node is None:
        raise UsageError(f"{path} is empty; expected questions (docs/evaluation/prompts.md)")
    return Part(str(path), "", node)
