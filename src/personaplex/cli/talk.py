"""`personaplex talk`: a live conversation with a microphone and a speaker, or with files that stand for them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import click

from personaplex.audio import check_format, read_audio
from personaplex.cli.cascade import cascade_options, check_recogniser, delegate_parts, open_beside, open_deputy
from personaplex.cli.options import (
    DEFAULT_PERSONA,
    TALKS_AS_ITSELF,
    check_sampling,
    find_voice,
    kept_prompts,
    known_voices,
    kv_bits_option,
    model_option,
    note,
    note_blas,
    persona_options,
    role_prompt,
    sampling_changes,
    sampling_options,
)
from personaplex.errors import UsageError
from personaplex.files import check_writable
from personaplex.text import PROMPTS

if TYPE_CHECKING:
    from personaplex.conversation import Conversation, Settings
    from personaplex.live.device import Device, Hint
    from personaplex.live.display import Display
    from personaplex.live.floor import Floor
    from personaplex.live.session import Happening, Roles
    from personaplex.turns import VoiceActivity


_PAUSES = {
    "duplex": {"speech_seconds": 0.25, "silence_seconds": 1.0},
    "cascade": {"speech_seconds": 0.15, "silence_seconds": 0.6},
    "judged": {"speech_seconds": 0.15, "silence_seconds": 0.2},
}


@click.command("talk")
@click.option(
    "--backend",
    type=click.Choice(["duplex", "cascade"]),
    default="duplex",
    show_default=True,
    help="One model that hears and speaks, or a recogniser, a language model and a voice of your choice.",
)
@model_option
@persona_options
@click.option("--voice", metavar="NAME|FILE", help="Another voice than the persona's: as in `respond`.")
@click.option("--system-prompt", metavar="NAME|FILE", help=f"Another role: {', '.join(PROMPTS)}, or a text file.")
@click.option("--system-prompt-text", metavar="TEXT", help="The agent's role in your words; empty for none.")
@cascade_options
@click.option("--transcribe", is_flag=True, help="Duplex: show what you say, as --recogniser hears it (experimental).")
@click.option(
    "--delegate",
    metavar="NAME[:MODEL]",
    help="Duplex: a language model, as for --llm, that answers in the model's place what --recogniser hears "
    "(experimental; default: the persona's, or none).",
)
@click.option(
    "--delegate-speech",
    type=click.Choice(["voice", "model"]),
    default="voice",
    show_default=True,
    help="Who says what the delegate answers: --synthesiser, or the model itself.",
)
@click.option(
    "--resume",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Go on from what !save wrote, with its voice and role.",
)
@click.option(
    "--mode",
    type=click.Choice(["duplex", "turns", "push"]),
    default="duplex",
    show_default=True,
    help="Both at once; one after the other, by voice activity; or by pressing Enter.",
)
@click.option("--onset", type=float, default=0.5, show_default=True, help="Probability from which on it is speech.")
@click.option("--offset", type=float, default=0.35, show_default=True, help="Probability below which it is silence.")
@click.option("--speech-seconds", type=float, help="Speech that begins your turn (default 0.25; cascade: 0.15).")
@click.option(
    "--silence-seconds",
    type=float,
    help="Silence that ends it (default 1; cascade: 0.6, 0.2 with --end-of-turn smart).",
)
@click.option("--headphones", is_flag=True, help="No echo to cancel: the microphone cannot hear the agent.")
@click.option(
    "--echo",
    type=click.Choice(["cancel", "gate", "off"]),
    help="On speakers: cancel the echo (default), or mute you while the agent is audible.",
)
@click.option("--microphone", metavar="NAME|NUMBER", help="Default: the system's.")
@click.option("--speaker", metavar="NAME|NUMBER", help="Default: the system's.")
@click.option("--list-devices", is_flag=True, help="Print microphones and speakers and exit.")
@click.option("-i", "--input", "source", metavar="FILE", help="A recording instead of the microphone.")
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="What the speaker would play.")
@click.option("--realtime", is_flag=True, help="With --input: keep the clock's time, as a microphone does.")
@click.option(
    "--max-seconds", type=float, default=16.0, show_default=True, help="With --input: go on at most so long after it."
)
@click.option(
    "--record",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Record both (.wav, .flac), and a .json beside it.",
)
@click.option("--plain", is_flag=True, help="Lines instead of the full-screen display.")
@click.option("--context-seconds", type=float, help="A shorter window than the model's own, for less memory.")
@click.option(
    "--prompt-cache/--no-prompt-cache",
    default=True,
    show_default=True,
    help="Keep what was read of voice and role on disk, so that the next start need not read it.",
)
@kv_bits_option
@sampling_options
@click.option("-q", "--quiet", is_flag=True, help="Only the transcript and errors.")
def command(**options: Any) -> None:
    """Talk with the agent, with microphone and speaker.

    Type while talking: !persona NAME [keep], !voice NAME [keep], !say TEXT, !stop, !reset, !save [FILE], !quit; Enter
    begins and ends your turn with --mode push, and cuts the agent off with --mode turns. Ctrl-C ends the conversation
    too. What the agent says is printed on stdout, unless the display shows it.
    """
    if options["list_devices"]:
        from personaplex.live.sound_card import list_devices

        click.echo("\n".join(list_devices()))
        return
    rule = _check(options)
    device = _device(options)
    roles, settings = _roles(options)
    note_blas(quiet=options["quiet"])
    with _ending_orderly():
        _talk(device, roles, settings, rule, options)


def _check(options: dict[str, Any]) -> VoiceActivity:
    """Everything that can be known to be wrong before minutes of loading."""
    from personaplex.checkpoint.tensors import TensorFile
    from personaplex.live.echo import echo_for
    from personaplex.live.recording import check_alone, check_recording

    _check_engines(options)
    rule = _voice_activity(options)
    check_sampling(options)
    if options["system_prompt"] is not None and options["system_prompt_text"] is not None:
        raise UsageError("give --system-prompt or --system-prompt-text, not both")
    if options["source"] is None and (options["output"] is not None or options["realtime"]):
        raise UsageError("--output and --realtime go with --input, a recording instead of the microphone")
    if not options["max_seconds"] >= 0:
        raise UsageError(f"--max-seconds is {options['max_seconds']}; it must be 0 or more")
    if options["headphones"] and options["echo"] not in (None, "off"):
        raise UsageError("--headphones says that there is no echo; leave out --echo")
    written = [path for path in (options["output"], options["record"]) if path is not None]
    if len({path.resolve() for path in written} | {Path(options["source"] or "").resolve()}) <= len(written):
        raise UsageError("--input, --output and --record must be different files")
    if options["resume"] is not None:
        TensorFile(options["resume"])
    if options["output"] is not None:
        check_format(options["output"])
        check_writable(options["output"])
    if options["record"] is not None:
        check_alone(options["record"], *(Path(path) for path in (options["output"], options["source"]) if path))
        check_recording(options["record"])
    if options["echo"] is None:
        # One after the other there is nothing to cancel, and a file has no loudspeaker beside it.
        silent = options["headphones"] or options["source"] is not None or options["mode"] != "duplex"
        options["echo"] = "off" if silent else "cancel"
    echo_for(options["echo"], 0.0)
    return rule


def _check_engines(options: Mapping[str, Any]) -> None:
    """Whether the engines that are named have something to do."""
    says_how = _is_typed("delegate_speech")
    if options["backend"] == "cascade":
        if options["transcribe"]:
            raise UsageError("--transcribe is for the duplex model; a cascade always shows what it understood")
        if options["delegate"] is not None or says_how:
            raise UsageError("--delegate is for the duplex model; in a cascade --llm answers")
        return
    parts = delegate_parts(options)
    delegates = parts.delegate is not None
    if says_how and not delegates:
        raise UsageError("--delegate-speech says nothing without --delegate")
    hears, speaks = options["transcribe"] or delegates, delegates and options["delegate_speech"] == "voice"
    used = {"recogniser": hears, "llm": False, "synthesiser": speaks, "language": hears, "end_of_turn": False}
    if delegates and not speaks and _is_typed("synthesiser"):
        raise UsageError("--synthesiser says nothing with --delegate-speech model")
    if named := [name for name, is_used in used.items() if _is_typed(name) and not is_used]:
        raise UsageError(f"--{named[0].replace('_', '-')} is a cascade's; add --backend cascade")
    if hears:
        check_recogniser(parts.recogniser if delegates else options["recogniser"])


def _voice_activity(options: dict[str, Any]) -> VoiceActivity:
    """When the user counts as speaking; what was not chosen is as the backend and the end of turn want it."""
    from personaplex.turns import VoiceActivity

    how = options["end_of_turn"] or "silence"
    if how != "silence" and options["mode"] != "duplex":
        raise UsageError(f"--end-of-turn {how} goes with --mode duplex; else silence or a key ends your turn")
    for name, seconds in _PAUSES[options["backend"] if how == "silence" else "judged"].items():
        options[name] = seconds if options[name] is None else options[name]
    return VoiceActivity(options["onset"], options["offset"], options["speech_seconds"], options["silence_seconds"])


def _is_typed(name: str) -> bool:
    """Whether an option was given on the command line, and not only in the environment."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _device(options: dict[str, Any]) -> Device:
    from personaplex.live.device import FileDevice

    if options["source"] is not None:
        return FileDevice(read_audio(options["source"]), options["output"], realtime=options["realtime"])
    from personaplex.live.sound_card import SoundCard

    return SoundCard(*(_name_or_number(options[which]) for which in ("microphone", "speaker")))


def _name_or_number(choice: str | None) -> str | int | None:
    return int(choice) if choice is not None and choice.isdecimal() else choice


def _roles(options: dict[str, Any]) -> tuple[Roles, Settings]:
    """Who can be spoken to, and who it is at first; what only the model knows is filled in later."""
    from personaplex.conversation import Settings
    from personaplex.live.session import Roles
    from personaplex.persona import read_personas

    roles = Roles(read_personas(*options["persona_files"]), find_voice=find_voice)
    roles.settings(options["persona"] or DEFAULT_PERSONA)
    if options["backend"] == "cascade":
        return roles, Settings(seed=options["seed"])
    voice = find_voice(options["voice"]) if options["voice"] is not None else None
    return roles, Settings(voice, role_prompt(options), options["seed"], sampling_changes(options))


@dataclass(frozen=True)
class _Line:
    """A backend that is ready to open conversations, and what a `Session` should know of it."""

    open: Callable[[Settings], Conversation]
    settings: Settings
    roles: Roles
    about: Mapping[str, Any]
    step_ms: Callable[[], Sequence[float]] = list
    opening: Callable[[], Conversation] | None = None


def _talk(device: Device, roles: Roles, settings: Settings, rule: VoiceActivity, options: dict[str, Any]) -> None:
    from personaplex.live.session import Session

    happenings: Queue[Happening] = Queue()
    backend = _cascade if options["backend"] == "cascade" else _duplex
    with (
        backend(roles, settings, rule, options) as line,
        _terminal(happenings.put, options) as display,
        _warnings(happenings.put),
    ):
        Session(
            line.open,
            line.settings,
            device,
            _floor(options["mode"], rule),
            display,
            line.roles,
            echo=options["echo"],
            record=options["record"],
            about=line.about,
            tail_seconds=options["max_seconds"],
            step_ms=line.step_ms,
            opening=line.opening,
            happenings=happenings,
        ).run()


@contextmanager
def _duplex(roles: Roles, settings: Settings, rule: VoiceActivity, options: dict[str, Any]) -> Iterator[_Line]:
    from personaplex.runtime.engine import Engine
    from personaplex.runtime.limits import Limits

    note(f"loading {options['model']}", quiet=options["quiet"])
    seconds, kv_bits = options["context_seconds"], int(options["kv_bits"])
    prompts = kept_prompts() if options["prompt_cache"] else None
    limits = Limits(context_seconds=seconds, prefix_folder=prompts, voice_activity=rule, kv_bits=kv_bits)
    resume: Path | None = options["resume"]
    with open_deputy(options) as deputy, Engine(options["model"], limits=limits) as engine:
        roles = replace(roles, model_voices=known_voices(engine.model.list_voices()))
        settings = _with_persona(roles, settings, options)
        if not engine.model.config.prompts:
            note(TALKS_AS_ITSELF, quiet=options["quiet"])
            settings = replace(settings, voice="", prompt="")
        about = _about(settings, options) | ({} if engine.model.config.prompts else {"persona": None})
        about["delegate"] = None if deputy is None else delegate_parts(options).delegate
        opening = None if resume is None else lambda: engine.load(resume)
        if deputy is None and not options["transcribe"]:
            yield _Line(engine.open, settings, roles, about, lambda: engine.step_ms, opening)
            return
        heard = open_beside(engine, deputy, options, patient=_is_patient(options))
        resumed = None if resume is None else lambda: heard.listen_in(engine.load(resume))
        try:
            yield _Line(heard.open, settings, roles, about, lambda: engine.step_ms, resumed)
        finally:
            heard.close()


def _is_patient(options: Mapping[str, Any]) -> bool:
    """No time passes while an answer is made, unless a clock's time is kept for both."""
    return options["mode"] != "duplex" or (options["source"] is not None and not options["realtime"])


@contextmanager
def _cascade(roles: Roles, settings: Settings, rule: VoiceActivity, options: dict[str, Any]) -> Iterator[_Line]:
    from personaplex.cli.cascade import open_cascade, parts_in_use

    with open_cascade(options, rule, patient=_is_patient(options)) as backend:
        settings = replace(settings, voice=None, prompt=options["persona"] or DEFAULT_PERSONA, sampling=None)
        about = _about(settings, options) | {"model": "cascade"} | asdict(parts_in_use(options))
        yield _Line(backend.open, settings, replace(roles, by_name=True, find_voice=str), about)


def _with_persona(roles: Roles, settings: Settings, options: dict[str, Any]) -> Settings:
    """What was asked for, and the persona's own where nothing was."""
    own = roles.settings(options["persona"] or DEFAULT_PERSONA)
    sampling = {**_mapping(own.sampling), **_mapping(settings.sampling)}
    return replace(
        settings,
        voice=own.voice if settings.voice is None else settings.voice,
        prompt=own.prompt if settings.prompt is None else settings.prompt,
        sampling=sampling or None,
    )


def _mapping(sampling: object) -> dict[str, Any]:
    return dict(sampling) if isinstance(sampling, Mapping) else {}


def _about(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "left": "agent",
        "right": "user",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": options["model"],
        "persona": options["persona"] or DEFAULT_PERSONA,
        "voice": settings.voice if settings.voice is None else str(settings.voice),
        "prompt": settings.prompt,
        "mode": options["mode"],
        "echo": options["echo"],
    }


def _floor(mode: str, rule: VoiceActivity) -> Floor:
    from personaplex.live.floor import Key, Open, Turns, Voice

    if mode == "duplex":
        return Open()
    return Turns(Voice(rule) if mode == "turns" else Key())


@contextmanager
def _terminal(put: Callable[[str], None], options: dict[str, Any]) -> Iterator[Display]:
    """Display and keyboard, as the terminal allows; it is left as it was."""
    from personaplex.live.display import Lines, Screen
    from personaplex.live.keyboard import Keyboard, standard_input

    fd = standard_input()
    if fd is not None and not options["plain"] and _is_terminal(fd):
        keyboard = Keyboard(fd, put, raw=True)
        who = "cascade" if options["backend"] == "cascade" else options["model"]
        screen = Screen(sys.stdout, f"personaplex talk · {who}", lambda: keyboard.typed)
        try:
            with screen, keyboard:
                yield screen
        finally:
            click.echo("\n".join(screen.transcript()))
        return
    lines = Lines(sys.stdout, None if options["quiet"] else sys.stderr)
    try:
        with Keyboard(fd, put, raw=False) if fd is not None else nullcontext():
            yield lines
    finally:
        lines.end()


@contextmanager
def _warnings(put: Callable[[Hint], None]) -> Iterator[None]:
    """What the engine warns of is a line for the person, wherever those are shown."""
    from personaplex.live.device import Hint

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            put(Hint(record.getMessage()))

    log, handler = logging.getLogger("personaplex"), Telling()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _is_terminal(fd: int) -> bool:
    return sys.stdout.isatty() and os.isatty(fd) and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def _ending_orderly() -> Iterator[None]:
    """A hang-up or `kill` ends a conversation as Ctrl-C does: recordings are finished, the terminal is put back."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
