"""Runs the command line: `loopwright`, or `python -m loopwright`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Its libraries are an extra, so that apps need not install them."""
    try:
        from loopwright.cli import main as run  # noqa: PLC0415 - may be missing
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit("loopwright: the command line needs two more libraries: pip install 'loopwright[cli]'")
    run()


if __name__ == "__main__":
    main()
