"""Get every missing part: ``python -m tests.parts``. In CI an unavailable part is an error."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .cache import say
from .chromium import chromium_program
from .environments import application_servers, client_libraries
from .llama_cpp_python import llama_cpp_python
from .llama_server import llama_server
from .logrotate import logrotate_program
from .missing import MissingPart, in_ci
from .monitoring import alertmanager_program, sid_program
from .prometheus import prometheus_program
from .rotel import rotel_program
from .sid import sid_llama_server
from .valgrind import valgrind_program
from .vocabularies import vocabularies


def _available(get: Callable[[], object]) -> bool:
    try:
        get()
    except MissingPart as error:
        say(str(error))
        return False
    return True


def main() -> int:
    """Return the exit status: 1 in CI if a part is missing, else 0 (tests that need it are skipped with the reason)."""
    wanted = (
        rotel_program,
        lambda: prometheus_program("promtool"),
        lambda: sid_program("prometheus"),
        lambda: sid_program("victoria-metrics"),
        lambda: sid_program("kustomize"),
        alertmanager_program,
        logrotate_program,
        chromium_program,
        client_libraries,
        application_servers,
        llama_server,
        sid_llama_server,
        llama_cpp_python,
        vocabularies,
        valgrind_program,
    )
    parts = [_available(get) for get in wanted]
    return 1 if in_ci() and not all(parts) else 0


if __name__ == "__main__":
    sys.exit(main())
