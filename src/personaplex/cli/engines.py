"""`personaplex engines`: what the cascade can hear, think and speak with, and what each part needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from personaplex.cli.options import json_option

_KINDS = {
    "recogniser": "what hears (--recogniser)",
    "thinker": "what answers (--llm)",
    "synthesiser": "what speaks (--synthesiser)",
    "end of turn": "what tells the end of a turn from a pause (--end-of-turn)",
}


@click.command("engines")
@json_option
def command(as_json: bool) -> None:
    """List the cascade's engines: which can be used here, what each needs, and how it is installed.

    Those of other packages are listed too, and one that cannot be loaded is told with its reason.
    """
    engines = list(_engines())
    if as_json:
        click.echo(json.dumps({"engines": engines}))
        return
    for kind, title in _KINDS.items():
        click.echo(f"{title}:")
        for engine in engines:
            if engine["kind"] == kind:
                _print(engine)
    for engine in engines:
        if engine["kind"] is None:
            click.echo(f"broken: {engine['missing']}")


def _engines() -> Iterator[dict[str, Any]]:
    from personaplex.cascade.engine import EngineSpec
    from personaplex.cascade.registry import survey

    about = ("summary", "install", "licence", "modules", "platforms", "remark")
    for name, spec in survey().items():
        if isinstance(spec, EngineSpec):
            missing = spec.missing()
            known = {field: getattr(spec, field) for field in about}
            yield {"name": name, "kind": spec.kind, "usable": missing is None, "missing": missing, **known}
        else:
            nothing = dict.fromkeys(about)
            yield {"name": name, "kind": None, "usable": False, "missing": str(spec), **nothing}


def _print(engine: dict[str, Any]) -> None:
    said = [engine["summary"], f"licence: {engine['licence']}"]
    if engine["remark"]:
        said.append(f"note: {engine['remark']}")
    if engine["modules"]:
        said.append(f"needs: {', '.join(engine['modules'])}")
    if engine["missing"]:
        said.append(f"missing: {engine['missing']}")
    said.append(f"install: {engine['install']}")
    verdict = "ok" if engine["usable"] else "missing"
    first, *rest = said
    click.echo(f"  {engine['name']:16}{verdict:9}{first}")
    for line in rest:
        click.echo(f"{'':27}{line}")
