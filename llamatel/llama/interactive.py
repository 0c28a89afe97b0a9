"""Whether somebody sits before this process: then traces are kept to be looked at, and what runs is run again."""

from __future__ import annotations

import sys


def interactive() -> bool:
    """Whether this is a notebook, or Python's own prompt."""
    return ("IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None) or hasattr(sys, "ps1")
