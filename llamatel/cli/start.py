"""The console script. It imports next to nothing, so that Ctrl-C is answered in silence from the first moment on."""

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
