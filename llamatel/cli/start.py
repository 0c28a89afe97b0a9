"""The console script. It imports almost nothing, so Ctrl-C during imports leaves no traceback."""

from __future__ import annotations

import os
from typing import NoReturn


def run() -> NoReturn:
    """Load the command line and run it; ends the process."""
    try:
        from llamatel.cli.main import run as run_command

        run_command()
    except KeyboardInterrupt:
        os._exit(130)
