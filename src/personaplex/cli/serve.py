"""`personaplex serve`: a page to talk on, and a server for every client that exists."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from personaplex.cli.cascade import cascade_options, parts_of, pauses_of
from personaplex.cli.options import (
    DEFAULT_PERSONA,
    data_folder,
    find_persona,
    find_voice,
    known_voices,
    kv_bits_option,
    model_option,
    note_blas,
    persona_options,
)
from personaplex.errors import UsageError

if TYPE_CHECKING:
    from personaplex.persona import Persona
    from personaplex.server.opening import CascadePlan, DuplexPlan
    from personaplex.server.settings import ServerSettings


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=int, default=8998, show_default=True, help="The port; 0 takes any that is free.")
@click.option(
    "--backend",
    type=click.Choice(["both", "duplex", "cascade"]),
    default="both",
    show_default=True,
    help="What callers can talk with: the model that hears and speaks at once, the cascade, or either.",
)
@model_option
@click.option("--slots", type=int, default=1, show_default=True, help="Callers at once that the model holds.")
@click.option("--cascade-slots", type=int, default=4, show_default=True, help="Callers at once in the cascade.")
@click.option(
    "--token",
    envvar="PERSONAPLEX_TOKEN",
    show_envvar=True,
    help="What callers must show. Needed to listen on anything but this machine.",
)
@click.option("--no-auth", is_flag=True, help="Let anybody call who can reach the address.")
@click.option(
    "--tls", nargs=2, metavar="CERT KEY", type=click.Path(path_type=Path), help="Serve https, with these PEM files."
)
@click.option("--self-signed", is_flag=True, help="Serve https with a certificate that is made here, once.")
@click.option(
    "--origin", "origins", multiple=True, metavar="URL", help="A page of another host that may call; * for all."
)
@click.option(
    "--history",
    is_flag=False,
    flag_value="",
    metavar="[FILE|URL]",
    help="Keep sessions and transcripts: in an SQLite file, or in the database that a SQLAlchemy URL names "
    "(default: in memory, until the server ends).",
)
@click.option("--retention-days", type=float, help="Delete what --history keeps after so many days.")
@click.option(
    "--drain-seconds", type=float, default=30.0, show_default=True, help="How long callers may go on at the end."
)
@click.option(
    "--resume-seconds",
    type=float,
    default=30.0,
    show_default=True,
    help="How long a caller whose line broke is waited for.",
)
@persona_options
@cascade_options
@click.option("--context-seconds", type=float, help="A shorter window than the model's own, for less memory.")
@kv_bits_option
@click.option(
    "--log",
    "log_form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The log's form, on stderr.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors.")
def command(**options: Any) -> None:
    """Serve: a page to talk on, and every client that exists.

    /api/chat is Moshi's and PersonaPlex's protocol, /v1/realtime is OpenAI's; see docs/server.md. Ctrl-C or SIGTERM
    lets callers end their conversations, a second one does not.
    """
    from personaplex.persona import read_personas

    _check_installed()
    from personaplex.server import log
    from personaplex.server.opening import open_backends
    from personaplex.server.process import address_of, listen, serve
    from personaplex.server.service import Service

    settings = _settings(options)
    find_persona(options)
    personas = read_personas(*options["persona_files"])
    duplex, cascade = _duplex(options), _cascade(options, personas)
    note_blas(quiet=options["quiet"])
    bound = listen(settings)
    with bound:
        log.set_up(options["log_form"], quiet=options["quiet"])
        service = Service(settings, lambda: open_backends(duplex, cascade), personas)
        serve(service, bound, lambda: click.echo(f"listening on {address_of(settings, bound)}"))


def _check_installed() -> None:
    """Raise UsageError, with the line that installs them, if packages are missing that only a server needs."""
    needed = ("fastapi", "uvicorn", "websockets", "prometheus_client", "sqlalchemy", "python_multipart", "cryptography")
    if missing := [name for name in needed if not _is_there(name)]:
        raise UsageError(f"serving needs {', '.join(missing)}; pip install 'personaplex-mlx[serve]'")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False


def _settings(options: Mapping[str, Any]) -> ServerSettings:
    from personaplex.server.settings import ServerSettings

    certificate, key = _certificate(options)
    return ServerSettings(
        host=options["host"],
        port=options["port"],
        token=options["token"] or None,
        no_auth=options["no_auth"],
        origins=tuple(options["origins"]),
        certificate=certificate,
        key=key,
        persona=options["persona"] or DEFAULT_PERSONA,
        history=_history(options),
        retention_days=options["retention_days"],
        drain_seconds=options["drain_seconds"],
        resume_seconds=options["resume_seconds"],
    )


def _certificate(options: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
    from personaplex.server.tls import check_pair, self_signed

    if options["tls"] and options["self_signed"]:
        raise UsageError("give --tls or --self-signed, not both")
    if options["self_signed"]:
        return self_signed(data_folder() / "tls", options["host"])
    if not options["tls"]:
        return None, None
    certificate, key = options["tls"]
    check_pair(certificate, key)
    return certificate, key


def _history(options: Mapping[str, Any]) -> str | None:
    if options["history"] is None and options["retention_days"] is not None:
        raise UsageError("--retention-days says nothing without --history")
    return str(data_folder() / "history.sqlite3") if options["history"] == "" else options["history"]


def _duplex(options: Mapping[str, Any]) -> DuplexPlan | None:
    from personaplex.runtime.limits import Limits
    from personaplex.server.opening import DuplexPlan

    if options["backend"] == "cascade":
        return None
    if options["slots"] < 1:
        raise UsageError(f"--slots is {options['slots']}; it must be 1 or more")
    limits = Limits(context_seconds=options["context_seconds"], kv_bits=int(options["kv_bits"]))
    return DuplexPlan(options["model"], options["slots"], limits, known_voices, find_voice)


def _cascade(options: Mapping[str, Any], personas: Mapping[str, Persona]) -> CascadePlan | None:
    from personaplex.cascade.conversation import Manner
    from personaplex.server.opening import CascadePlan
    from personaplex.turns import VoiceActivity

    if options["backend"] == "duplex":
        return None
    if options["cascade_slots"] < 1:
        raise UsageError(f"--cascade-slots is {options['cascade_slots']}; it must be 1 or more")
    parts, pauses = parts_of(options), pauses_of(options)
    rule = VoiceActivity(speech_seconds=0.15, silence_seconds=0.6 if pauses is None else 0.2)
    manner = Manner(voice_activity=rule, pauses=pauses)
    return CascadePlan(options["cascade_slots"], parts, personas, options["persona"] or DEFAULT_PERSONA, manner)
