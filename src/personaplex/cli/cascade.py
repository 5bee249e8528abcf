"""What `--backend cascade` is made of: options that name its engines, and the backend they describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from personaplex.cli.options import DEFAULT_PERSONA, find_persona, note, role_prompt
from personaplex.errors import PersonaError, UsageError

if TYPE_CHECKING:
    from personaplex.cascade.backend import Cascade
    from personaplex.cascade.deputy import Deputy
    from personaplex.cascade.ear import Pauses
    from personaplex.cascade.transcribed import Transcribed
    from personaplex.conversation import Backend
    from personaplex.persona import Parts, Persona
    from personaplex.turns import VoiceActivity

NO_MODEL = "answers come from a few rules, not from a language model; --llm ollama:MODEL asks one"

_OPTIONS = [
    click.option(
        "--recogniser",
        metavar="NAME[:MODEL]",
        help="Cascade: what hears you (default: the best that is on this machine).",
    ),
    click.option(
        "--llm",
        metavar="NAME[:MODEL]",
        envvar="PERSONAPLEX_LLM",
        show_envvar=True,
        help="Cascade: what answers, such as ollama:llama3.2:1b, mlx-lm:FOLDER, or chat:MODEL at OPENAI_BASE_URL "
        "(default: responder, a few rules and no language model).",
    ),
    click.option("--synthesiser", metavar="NAME[:MODEL]", help="Cascade: what speaks (default: flite)."),
    click.option(
        "--language",
        metavar="CODE",
        help="Cascade: the language, such as en (default: the engines' own).",
    ),
    click.option(
        "--end-of-turn",
        metavar="silence|smart[:FILE]",
        help="Cascade: silence alone ends your turn (default), or a silence in which Smart Turn hears its end.",
    ),
]


def cascade_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that only a cascade reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parts_of(options: Mapping[str, Any]) -> Parts:
    """The engines that options name; what is left out is the persona's choice. Raises UsageError for unknown ones."""
    from personaplex.cascade.registry import find_engine, parse_choice
    from personaplex.persona import Parts

    for kind, name in (("recogniser", "recogniser"), ("thinker", "llm"), ("synthesiser", "synthesiser")):
        if options[name] is not None:
            find_engine(kind, parse_choice(options[name]).name)  # type: ignore[arg-type]
    named = {name: options.get(name) for name in ("recogniser", "llm", "synthesiser", "voice", "language")}
    return Parts(**named, temperature=options.get("text_temp"))


def pauses_of(options: Mapping[str, Any]) -> Pauses | None:
    """What tells the end of a turn from a pause; None for silence alone. Raises UsageError or EngineError."""
    from personaplex.cascade.ear import Pauses
    from personaplex.cascade.registry import open_end_of_turn

    choice = options["end_of_turn"]
    return None if choice in (None, "silence") else Pauses(open_end_of_turn(choice))


def personas_of(options: Mapping[str, Any]) -> dict[str, Persona]:
    """All personas; the one that is asked for has the role prompt that options give. Raises PersonaError."""
    import dataclasses

    from personaplex.persona import read_personas

    personas, name = read_personas(*options["persona_files"]), options["persona"] or DEFAULT_PERSONA
    if name not in personas:
        raise PersonaError(f"unknown persona {name!r}; there are {', '.join(sorted(personas))}")
    prompt = role_prompt(options)
    if prompt is not None:
        personas[name] = dataclasses.replace(personas[name], prompt=prompt)
    return personas


def parts_in_use(options: Mapping[str, Any]) -> Parts:
    """The engines and numbers that a conversation begins with."""
    from personaplex.cascade.session import chosen

    return chosen(personas_of(options)[options["persona"] or DEFAULT_PERSONA], parts_of(options))


def open_cascade(options: Mapping[str, Any], rule: VoiceActivity, *, patient: bool) -> Cascade:
    """The backend. Raises UsageError for options that a cascade cannot follow."""
    from personaplex.cascade.backend import Cascade
    from personaplex.cascade.conversation import Manner

    for name in ("resume", "context_seconds", "text_top_k", "audio_temp", "audio_top_k", "repetition_penalty"):
        if options[name] is not None:
            raise UsageError(f"--{name.replace('_', '-')} is the duplex model's; a cascade does not have it")
    own = parts_in_use(options)
    note(f"cascade: {own.recogniser} hears, {own.llm} answers, {own.synthesiser} speaks", quiet=options["quiet"])
    if own.llm == "responder":
        note(f"note: {NO_MODEL}", quiet=options["quiet"])
    manner = Manner(voice_activity=rule, pauses=pauses_of(options), patient=patient)
    return Cascade(1, parts=parts_of(options), personas=personas_of(options), manner=manner)


def delegate_parts(options: Mapping[str, Any]) -> Parts:
    """Who answers in a duplex model's place, if anybody, and what hears and says it. Raises PersonaError."""
    from personaplex.cascade.session import chosen
    from personaplex.persona import Parts

    named = {name: options[name] for name in ("recogniser", "synthesiser", "language", "delegate")}
    return chosen(find_persona(options), Parts(**named))


def check_recogniser(choice: str | None) -> None:
    """Raise UsageError if there is none of that name, EngineError if it is not installed."""
    from personaplex.cascade.registry import find_engine, parse_choice

    if choice is not None:
        find_engine("recogniser", parse_choice(choice).name).check()


@contextmanager
def open_deputy(options: Mapping[str, Any]) -> Iterator[Deputy | None]:
    """The deputy that options or a persona ask for, before minutes of loading. Raises what makes it impossible."""
    parts = delegate_parts(options)
    if parts.delegate is None:
        yield None
        return
    from personaplex.cascade.deputy import Deputy

    aloud = options["delegate_speech"] == "voice"
    with closing(Deputy(parts.delegate, parts, aloud=aloud)) as deputy:
        speaker = parts.synthesiser if aloud else "the model"
        note(f"delegate: {parts.recogniser} hears, {parts.delegate} answers, {speaker} speaks", quiet=options["quiet"])
        if parts.delegate == "responder":
            note("note: answers come from a few rules, not from a language model", quiet=options["quiet"])
        yield deputy


def open_beside(engine: Backend, deputy: Deputy | None, options: Mapping[str, Any], *, patient: bool) -> Transcribed:
    """The engine with a recogniser that listens in, and with the deputy."""
    from personaplex.cascade.delegated import Delegated
    from personaplex.cascade.transcribed import Transcribed

    if deputy is None:
        return Transcribed(engine, options["recogniser"], options["language"])
    return Delegated(engine, deputy, deputy.parts.recogniser or "", deputy.parts.language, patient=patient)
