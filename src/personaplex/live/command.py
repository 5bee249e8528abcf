"""What can be typed while talking."""

from __future__ import annotations

from dataclasses import dataclass

from personaplex.errors import UsageError

KEEP = " keep"
COMMANDS = {
    "persona": "NAME [keep]",
    "voice": "NAME [keep]",
    "say": "TEXT",
    "stop": "",
    "reset": "",
    "save": "[FILE]",
    "quit": "",
}
"""Each command and what follows it."""

HELP = "  ".join(f"!{name} {argument}".strip() for name, argument in COMMANDS.items())


@dataclass(frozen=True)
class Command:
    """A command that was typed, with what followed it; `keep` what was said, where that can be asked for."""

    name: str
    argument: str = ""
    keep: bool = False


def parse_command(line: str) -> Command:
    """`!voice NATF2` -> Command("voice", "NATF2"). Raises UsageError saying what can be typed."""
    name, _, argument = line.strip().removeprefix("!").partition(" ")
    argument = argument.strip()
    if name not in COMMANDS:
        raise UsageError(f"unknown command !{name}; there are {HELP}")
    if not COMMANDS[name] and argument:
        raise UsageError(f"!{name} takes nothing more")
    if COMMANDS[name][:1].isalpha() and not argument:
        raise UsageError(f"!{name} needs a {COMMANDS[name].split()[0].lower()}")
    keep = COMMANDS[name].endswith("[keep]") and argument.endswith(KEEP)
    return Command(name, argument.removesuffix(KEEP).rstrip() if keep else argument, keep)
