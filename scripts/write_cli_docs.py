"""Write docs/cli.md from the program's own help: `python scripts/write_cli_docs.py`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from personaplex.cli.main import program

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = """# The command line

Written by `scripts/write_cli_docs.py` from the program's own help; a test fails when it is out of date.

Results go to files and, where asked for, to stdout; everything said to a person goes to stderr. A file is written
under a temporary name and renamed when it is whole. Whatever goes wrong is one line on stderr and one of these codes:

| code | meaning |
|---|---|
| 0 | done (also when the reader of a pipe went away) |
| 2 | wrong usage: unknown or contradicting options |
| 3 | a recording (or a file of codes) that is missing, empty, damaged, too long or not audio |
| 4 | a model folder, file, tensor or configuration that is missing, damaged or unknown |
| 5 | an unknown or unusable voice, prompt or role |
| 6 | an output that cannot be written |
| 7 | MLX has no backend that works here, or not enough memory |
| 8 | a training run that cannot begin, go on or be resumed |
| 9 | a speech synthesiser that is missing, or cannot say a text |
| 10 | a live conversation that could not be opened, or ended by itself |
| 11 | a microphone or speaker that is missing, busy or unplugged, or no library to reach one |
| 12 | a recogniser, language model or voice of the cascade that is missing, unreachable or fails |
| 130 | interrupted with Ctrl-C; no file was written (`talk` ends with 0, and keeps its files) |

`PERSONAPLEX_MODEL` sets the default of `--model`, `PERSONAPLEX_LLM` that of `--llm`, `PERSONAPLEX_RECOGNISER` that of
`transcribe --engine`; `PERSONAPLEX_BLAS` names a BLAS
to load on a Linux CPU (`none`: MLX's own); `PERSONAPLEX_VOICES` names the folder of your own voices,
`PERSONAPLEX_CACHE` that of what was read before and of CUDA kernels that were built,
`PERSONAPLEX_MODELS` that of the voices for Piper and Kokoro;
`PERSONAPLEX_TOKEN` is what callers of `serve` must show.
"""


def page() -> str:
    """The page's text."""
    os.environ.pop("PERSONAPLEX_MODEL", None)
    sections = [HEAD]
    stack: list[tuple[str, click.Command]] = [("personaplex", program)]
    while stack:
        name, command = stack.pop(0)
        with click.Context(
            command, info_name=name, terminal_width=100, max_content_width=100, help_option_names=["-h", "--help"]
        ) as context:
            sections.append(f"## `{name}`\n\n```text\n{command.get_help(context)}\n```\n")
            if isinstance(command, click.Group):
                for child in command.list_commands(context):
                    found = command.get_command(context, child)
                    assert found is not None
                    stack.append((f"{name} {child}", found))
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
