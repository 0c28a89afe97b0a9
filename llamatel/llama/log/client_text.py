"""Text of clients in llama.cpp's log, which is theirs to choose and may look like llama.cpp's own lines.

At its default verbosity llama.cpp prints two things as they were sent, line ends included: a grammar that it cannot
parse (src/llama-grammar.cpp) and the patterns of a JSON schema that it cannot turn into one
(common/json-schema-to-grammar.cpp). Both begin and end with words of llama.cpp's own. Who knows the end can write it
into what he sends: a log is as true as those are who may send grammars.
"""

from __future__ import annotations

import re

_GRAMMAR = "error parsing grammar: "
_GRAMMAR_ENDS = re.compile(r"\d\.\d{3}\.\d{3} [A-Z] .*ailed to parse grammar")
_SCHEMA = "WARNING: JSON schema conversion was incomplete: "
_SCHEMA_ENDS = "accepting any string"
_LONGEST_S = 1.0
"""It is written at once; a build that words its end in another way costs no more than this."""
_MOST_LINES = 10_000


class ClientText:
    """Finds it. Not thread-safe: who feeds the log reader feeds it."""

    def __init__(self) -> None:
        self._begun_with: str | None = None
        self._since = 0.0
        self._lines = 0

    def holds(self, line: str, now: float) -> bool:
        """Whether a line, read at Unix time ``now``, is part of it."""
        if self._begun_with is None:
            self._begun_with = _GRAMMAR if _GRAMMAR in line else _SCHEMA if _SCHEMA in line else None
            if self._begun_with is None:
                return False
            self._since, self._lines = now, 0
        self._lines += 1
        if self._begun_with == _SCHEMA and line.endswith(_SCHEMA_ENDS):
            self._begun_with = None
            return True
        told = self._begun_with == _GRAMMAR and _GRAMMAR_ENDS.search(line) is not None
        if told or now - self._since > _LONGEST_S or self._lines > _MOST_LINES:
            self._begun_with = None
            return False
        return True
