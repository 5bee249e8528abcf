"""`personaplex doctor`: what this machine has and lacks, and what mends it."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from personaplex.cli.options import json_option


@click.command("doctor")
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check this machine: MLX, GPU driver, BLAS, memory, disk, Hub and token, microphone, speaker, Opus,
    the cascade.

    Each is ok, a warning (something cannot be done here, or is slow) or a problem (nothing runs), with what mends it.
    Ends with 0 when it can run, else with the exit code of the first problem. With HF_HUB_OFFLINE nothing is asked of
    the network.
    """
    from personaplex.doctor import examine

    checks = examine()
    code = next((check.exit_code for check in checks if check.verdict == "problem"), 0)
    if as_json:
        click.echo(json.dumps({"ok": code == 0, "exit_code": code, "checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            click.echo(f"{check.verdict:9}{check.name:12}{check.found}")
            if check.mend:
                click.echo(f"{'':21}-> {check.mend}")
    context.exit(code)
