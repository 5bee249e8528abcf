"""`python -m personaplex`."""

from personaplex.cli.main import run

run()
