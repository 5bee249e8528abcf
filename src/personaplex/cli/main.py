"""The `personaplex` program: its commands, and how every error ends it."""

from __future__ import annotations

import os
import sys

import click

from personaplex import __version__
from personaplex.accelerator import explain
from personaplex.cli.group import LazyGroup
from personaplex.errors import EXIT_INTERRUPTED, OutputError, PersonaPlexError

COMMANDS = {
    "respond": "Answer a recording: speech in, speech and text out.",
    "talk": "Talk: microphone and speaker, live.",
    "serve": "Serve a page to talk on, and the protocols of other clients.",
    "speak": "Read a text aloud: a file, a pipe or words.",
    "transcribe": "Write down what is said in recordings.",
    "voices": "Voices of your own: clone, blend, list, play, remove.",
    "codec": "Mimi alone: audio to tokens and back.",
    "trace": "A token-level run, for people who port or check models.",
    "info": "Describe a model: architecture, bits, licence, memory.",
    "engines": "List the cascade's recognisers, language models and voices.",
    "doctor": "Check this machine, and say what mends it.",
    "bench": "Measure this machine.",
    "verify": "Speak to a model, recognise its answers and check them.",
    "eval": "Measure how good a model, a codec or a voice is.",
    "report": "Conversations and measurements on one page; two of them compared.",
    "convert": "Quantise a model, for less memory and faster steps.",
    "quantisation-report": "Measure what fewer bits cost.",
    "train": "Make the small model from nothing.",
}


@click.group(
    cls=LazyGroup,
    commands_help=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 wrong usage, 3 unusable recording, 4 unusable model, 5 unknown voice or prompt, "
    "6 unwritable output, 7 no working MLX backend, 8 training that cannot go on, 9 no speech synthesiser, "
    "10 no conversation, 11 no microphone or speaker, 12 an engine that is missing or fails, 13 a model that fails "
    "verify, 130 interrupted.",
)
@click.version_option(__version__, prog_name="personaplex")
def program() -> None:
    """Talk with a computer as with a person, on your own machine."""


def main(arguments: list[str] | None = None) -> int:  # noqa: PLR0911 - one way out per kind of end
    """Run the program and return its exit code; the errors we know end in one line on stderr."""
    try:
        code = program.main(args=arguments, prog_name="personaplex", standalone_mode=False)
    except SystemExit:
        # Click's way to say that the reader of a pipe has gone (`| head`): nothing is wrong, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
            click.echo(error.format_message(), err=True)
            return error.exit_code
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        return _fail(error.format_message() + hint, error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        # A command that keeps what is done says so itself.
        said = str(error.args[0]) if isinstance(error, click.Abort) and error.args else "no file was written"
        return _fail(f"interrupted; {said}", EXIT_INTERRUPTED)
    except PersonaPlexError as error:
        return _fail(str(error), error.exit_code)
    except (OSError, UnicodeError) as error:
        # A full or closed stdout, a name that the file system refuses.
        return _fail(f"{error}", OutputError.exit_code)
    except ImportError as error:
        known = explain(error)
        if isinstance(known, PersonaPlexError):
            return _fail(str(known), known.exit_code)
        raise
    return code if isinstance(code, int) else 0  # what a command chose to exit with


def _fail(message: str, code: int) -> int:
    click.echo(f"personaplex: {' '.join(message.split())}", err=True)
    return code
