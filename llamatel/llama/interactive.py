"""Whether a person works in this process: then traces are kept, and code is run again.

Jupyter and IPython, Python's own prompt, marimo and Streamlit, which run a script again by themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


def interactive() -> bool:
    """Whether this is a notebook, a prompt or an app that reruns its script."""
    return hasattr(sys, "ps1") or any(
        _answer(module, path) for module, path in (
            ("IPython", "get_ipython"), ("marimo", "running_in_notebook"), ("streamlit", "runtime.exists")
        )
    )  # fmt: skip


def _answer(module: str, path: str) -> bool:
    """The answer of a loaded library; False if it is not loaded, or not completely."""
    found: object = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    query: Callable[[], object] | None = found if callable(found) else None
    return query is not None and query() not in (None, False)
