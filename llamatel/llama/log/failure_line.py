"""Finds the line of a failed server's log that names the cause."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Most specific first; llama.cpp prints several lines for one cause. Searched anywhere in a line, so each starts with
# literal text and has no unbounded repeat but at its end.
_CAUSES = tuple(
    re.compile(pattern)
    for pattern in (
        r"error: invalid argument.*|error: unknown .*|error while handling argument.*",
        r"failed to open GGUF file.*|invalid magic.*|failed to read (?:magic|key|tensor).*",
        r"(?:couldn't|could not|failed to|cannot) bind.*",
        r"(?i:(?:failed|unable) to allocate|out of memory|cudaMalloc failed|not enough memory).*",
        r"std::bad_alloc",
        r"GGML_ASSERT\(.*|CUDA error.*",  # before a backtrace
        r"std::bad_alloc.*",
        r"(?<=error loading model: ).*",
        r"(?<=error: ).*",
    )
)
_STAMP = re.compile(r"\d{1,7}\.\d\d\.\d{3}\.\d{3} [A-Z] ")
_ERROR = re.compile(r"\d{1,7}\.\d\d\.\d{3}\.\d{3} E ")
_PORT_TAKEN = re.compile(r"(?:couldn't|could not|failed to|cannot) bind")
_MAX_LENGTH = 4096
"""Characters of a line that are searched."""


def hint(failure: str | None) -> str:
    """The remedy, if the message does not have it."""
    taken = failure is not None and _PORT_TAKEN.search(failure)
    return "; does another server listen there? port 0 takes a free one" if taken else ""


def failure_line(lines: Sequence[str]) -> str | None:
    """The message in ``lines`` that explains why the server failed; None if it wrote nothing."""
    lines = [line[:_MAX_LENGTH] for line in lines if line.strip()]
    for cause in _CAUSES:
        for line in lines:
            found = cause.search(line)
            if found is not None and found.group() == "std::bad_alloc":
                return _STAMP.sub("", line, count=1).strip()  # the size that it could not allocate precedes it
            if found is not None:
                return found.group().strip()
    errors = [line for line in lines if _ERROR.match(line)]
    chosen = errors[0] if errors else lines[-1] if lines else None
    return None if chosen is None else _STAMP.sub("", chosen, count=1).strip()
