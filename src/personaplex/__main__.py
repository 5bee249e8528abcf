"""`python -m personaplex`, and the installed script."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the program. What it needs is imported here, so that Ctrl-C meanwhile is no traceback either."""
    try:
        from personaplex.cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())


if __name__ == "__main__":
    run()
