"""What can be typed while talking."""

from __future__ import annotations

from dataclasses import dataclass

from personaplex.errors import UsageError

COMMANDS = {"persona": "NAME", "voice": "NAME", "reset": "", "save": "[FILE]", "quit": ""}
"""Each command and what follows it."""

HELP = "  ".join(f"!{name} {argument}".strip() for name, argument in COMMANDS.items())


@dataclass(frozen=True)
class Command:
    """A command that was typed, with what followed it."""

    name: str
    argument: str = ""


def parse_command(line: str) -> Command:
    """`!voice NATF2` -> Command("voice", "NATF2"). Raises UsageError saying what can be typed."""
    name, _, argument = line.strip().removeprefix("!").partition(" ")
    argument = argument.strip()
    if name not in COMMANDS:
        raise UsageError(f"unknown command !{name}; there are {HELP}")
    if not COMMANDS[name] and argument:
        raise UsageError(f"!{name} takes nothing more")
    if COMMANDS[name] == "NAME" and not argument:
        raise UsageError(f"!{name} needs a name")
    return Command(name, argument)
