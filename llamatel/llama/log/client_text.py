"""Client text that llama.cpp quotes in a text log; it may look like llama.cpp's own lines.

llama.cpp prints some rejected input unchanged, line ends included: a grammar that it cannot parse
(src/llama-grammar.cpp), patterns of a JSON schema that it cannot convert (common/json-schema-to-grammar.cpp), names of
samplers (common/sampling.cpp), errors of llguidance. Each starts and ends with words of llama.cpp's own, which a client
may send as well: a text log is only as accurate as its clients are trusted (docs/security.md). JSONL has no such lines.
"""

from __future__ import annotations

import re

_MESSAGE = re.compile(r'\d\.\d{3}\.\d{3} [A-Z] |"msg":"')
_REFUSED = ("ailed to parse grammar", "ailed to initialize sampl")
_STARTS = {
    "error parsing grammar: ": None,
    "llg error: ": "",
    "WARNING: JSON schema conversion was incomplete: ": "accepting any string",
    "unable to match sampler by name '": "'",
    "unsupported Responses tool type '": "' skipped",
}
"""Start of a quotation, and the end of its last line ("": empty); None: a rejection message follows it."""
_MAX_AGE_S = 1.0
"""A quotation is written at once: without its end it is over after this time."""
_MAX_LINES = 10_000


class ClientText:
    """Finds quotations that span lines. Not thread-safe: used with the lock of the log reader."""

    def __init__(self) -> None:
        self.open = False
        """Whether one has started and not finished."""
        self._start: str | None = None
        self._since = 0.0
        self._lines = 0

    def contains(self, line: str, now: float) -> bool:
        """Whether a line, read at Unix time ``now``, is part of one."""
        if self._start is None:
            for start in _STARTS:
                if start in line:
                    break
            else:
                return False
            self._start, self._since, self._lines = start, now, 0
        found = self._continues(self._start, line, now)
        self.open = self._start is not None
        return found

    def _continues(self, start: str, line: str, now: float) -> bool:
        """Whether a line is part of the quotation that has started; its last line closes it."""
        self._lines += 1
        end = _STARTS[start]
        if end is not None and (line.endswith(end) and not line.endswith(start) if end else not line):
            self._start = None
            return True
        refused = end is None and _MESSAGE.search(line) is not None and any(words in line for words in _REFUSED)
        if refused or now - self._since > _MAX_AGE_S or self._lines > _MAX_LINES:
            self._start = None
            return False
        return True
