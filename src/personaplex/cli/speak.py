"""`personaplex speak`: a text read aloud, into a file, a pipe or the speaker."""

from __future__ import annotations

import codecs
import io
import select
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import click
import numpy as np

from personaplex.audio import audio_file, check_format, pcm16, wav_header
from personaplex.cli.options import find_voice, note
from personaplex.cli.standard_output import check_stdout, write_stdout
from personaplex.errors import PersonaError, UsageError
from personaplex.files import check_writable
from personaplex.units import SAMPLE_RATE

Write: TypeAlias = Callable[[np.ndarray], None]
"""Takes a piece [S] at 24 kHz."""

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
_BLOCK = 1 << 16
_AHEAD = 4
"""Pieces that are made while one is played: the next sentence is there when this one is over."""


@click.command("speak")
@click.argument("source", metavar="TEXT|FILE|-")
@click.option(
    "--engine", metavar="NAME[:MODEL]", default="flite", show_default=True, help="What speaks (docs/cascade.md)."
)
@click.option("--voice", metavar="NAME|FILE", help="One of the engine's (default: its first); some take a recording.")
@click.option("--language", metavar="CODE", help="The language, such as en (default: the voice's).")
@click.option("-o", "--output", metavar="FILE", help="Where to (.wav, .flac, .ogg, .mp3); - writes WAV to stdout.")
@click.option("--play", is_flag=True, help="Play it; what happens without --output.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors on stderr.")
def command(
    source: str, engine: str, voice: str | None, language: str | None, output: str | None, play: bool, quiet: bool
) -> int | None:
    """Read a text aloud: the words themselves, a text file, or standard input (-).

    Sentence by sentence, as the text comes. Markup, emoji and code are left out. A sentence that cannot be said is
    told on stderr, the rest is spoken, and the exit code is that of the failure.
    """
    from personaplex.cascade.aloud import Unsaid, read_aloud
    from personaplex.cascade.own_thread import OwnThread
    from personaplex.cascade.registry import find_engine, open_synthesiser, parse_choice

    remark = find_engine("synthesiser", parse_choice(engine).name).remark
    _check_output(output)
    failure: Unsaid | None = None
    n_samples = 0
    with ExitStack() as stack:
        stopped, stop = map(stack.enter_context, socket.socketpair())
        text = stack.enter_context(_text(source, stopped))
        outputs = [stack.enter_context(opened) for opened in _outputs(output, play)]
        note(f"note: {engine}: {remark}", quiet=quiet or not remark)
        synthesiser = stack.enter_context(closing(open_synthesiser(engine)))
        voice = _voice(voice, synthesiser.voices, engine)
        thread: OwnThread[np.ndarray | Unsaid] = stack.enter_context(OwnThread("speak"))
        made = thread.stream(lambda: read_aloud(text, synthesiser, engine, voice, language), _AHEAD)
        stack.enter_context(closing(made))  # type: ignore[type-var]
        stack.callback(stop.close)  # before the thread is waited for: it may be waiting for text
        for piece in made:
            if isinstance(piece, Unsaid):
                failure = piece
                note(f"personaplex: not said: {piece.error}: {_short(piece.sentence)!r}")
                continue
            n_samples += len(piece)
            for write in outputs:
                write(piece)
        if not n_samples and failure is not None:
            raise failure.error
        if not n_samples:
            raise UsageError("there is nothing to say: the text holds no words")
    if output not in (None, "-"):
        note(f"wrote {output}: {n_samples / SAMPLE_RATE:.1f} s", quiet=quiet)
    return None if failure is None else failure.error.exit_code


def _voice(voice: str | None, known: Sequence[str], engine: str) -> str | None:
    """A voice of the engine's, or a file: one of the user's own voices, or a recording. Raises PersonaError."""
    if voice is None or voice in known:
        return voice
    file = find_voice(voice)
    if not Path(file).is_file():
        raise PersonaError(f"{engine} has no voice {voice!r}; there are {', '.join(known) or 'none'}")
    return file


def _check_output(output: str | None) -> None:
    if output == "-":
        check_stdout()
    elif output is not None:
        check_format(Path(output))
        check_writable(Path(output))


def _outputs(output: str | None, play: bool) -> Iterator[AbstractContextManager[Write]]:
    """What opens each place that the sound goes to."""
    if play or output is None:
        from personaplex.live.sound_card import open_speaker

        yield open_speaker()
    if output == "-":
        yield _stdout()
    elif output is not None:
        yield audio_file(Path(output))


@contextmanager
def _stdout() -> Iterator[Write]:
    begun = False

    def write(pcm: np.ndarray) -> None:
        nonlocal begun
        write_stdout((b"" if begun else wav_header(None)) + pcm16(pcm).tobytes())
        begun = True

    yield write


@contextmanager
def _text(source: str, stopped: socket.socket) -> Iterator[Iterator[str]]:
    """The text that an argument stands for, part by part, until `stopped` can be read; the first is read at once.

    Raises UsageError.
    """
    with ExitStack() as stack:
        name, opened = _open(source)
        if opened is not sys.stdin.buffer:
            stack.enter_context(opened)
        parts = _parts(name, opened, stopped)
        first = next(parts, "")

        def all_parts() -> Iterator[str]:
            yield first
            yield from parts

        yield all_parts()


def _open(source: str) -> tuple[str, BinaryIO]:
    if source == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("standard input is a terminal; pipe a text into it, or give the text itself")
        return "standard input", sys.stdin.buffer
    path = Path(source or " ")  # an empty name is that of the folder we are in
    try:
        return source, path.open("rb")
    except (FileNotFoundError, ValueError):
        if len(source.split()) == 1 and path.suffix in TEXT_SUFFIXES:
            raise UsageError(f"{source} does not exist; name a text file, or give the text itself") from None
    except IsADirectoryError:
        raise UsageError(f"{source} is a folder; name a text file, or give the text itself") from None
    except PermissionError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error
    except OSError:
        pass  # no name for a file: too long, or with a file where a folder should be
    return "the text", io.BytesIO(source.encode("utf-8", "replace"))


def _parts(name: str, opened: BinaryIO, stopped: socket.socket) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while block := _read(opened, stopped):
            text = decoder.decode(block)
            if "\0" in text:
                raise UsageError(f"{name} is not a text: it holds a zero byte")
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not a text in UTF-8: {error.reason}") from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error


def _read(opened: BinaryIO, stopped: socket.socket) -> bytes:
    """Some bytes as soon as there are any, none at the end."""
    if not isinstance(opened, io.BytesIO):
        ready, _, _ = select.select([opened.fileno(), stopped.fileno()], [], [])
        if stopped.fileno() in ready:
            raise UsageError("no more of the text is wanted")
    return opened.read1(_BLOCK)  # type: ignore[attr-defined, no-any-return]


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= 60 else sentence[:59] + "…"
