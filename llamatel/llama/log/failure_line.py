"""The one line of a failed server's log that says why."""

from __future__ import annotations

import re
from collections.abc import Sequence

# In order of how much they tell; llama.cpp prints several lines for one cause.
_CAUSES = tuple(
    re.compile(pattern)
    for pattern in (
        r"error: invalid argument.*|error: unknown .*|error while handling argument.*",
        r"failed to open GGUF file.*|invalid magic.*|failed to read (?:magic|key|tensor).*",
        r"(?:couldn't|could not|failed to|cannot) bind.*",
        r"(?i:(?:failed|unable) to allocate|out of memory|cudaMalloc failed|not enough memory).*",
        r"(?:[\w ]+: )?std::bad_alloc.*",
        r"GGML_ASSERT\(.*\) failed|CUDA error.*",  # before a backtrace
        r"(?<=error loading model: ).*",
        r"(?<=error: ).*",
    )
)
_PREFIX = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ")
_ERROR = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} E ")


_PORT_TAKEN = re.compile(r"(?:couldn't|could not|failed to|cannot) bind")


def hint(failure: str | None) -> str:
    """What to do about it, where its own words do not say."""
    taken = failure is not None and _PORT_TAKEN.search(failure)
    return "; does another server listen there? port 0 takes a free one" if taken else ""


def failure_line(lines: Sequence[str]) -> str | None:
    """Why the server that wrote ``lines`` failed, in its own words; None if it wrote nothing."""
    for cause in _CAUSES:
        for line in lines:
            found = cause.search(line)
            if found is not None:
                return found.group().strip()
    said = [line for line in lines if line.strip()]
    errors = [line for line in said if _ERROR.match(line)]
    chosen = errors[0] if errors else said[-1] if said else None
    return None if chosen is None else _PREFIX.sub("", chosen).strip()
