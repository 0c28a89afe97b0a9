"""Finds prefixes that differ from line to line (request ids, sequence numbers): they name no source."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,64}|[0-9]{1,40}")
_MOST_ALIKE = 24
"""Origins that differ in their numbers only."""
_LINES_EACH = 2
"""A source has more lines than this on average."""
_MOST_FORMS = 256


class VariableOrigins:
    """The origins of one log, by their form without numbers."""

    def __init__(self) -> None:
        self._alike: dict[str, set[str]] = {}
        self._lines: dict[str, int] = {}
        self._variable: set[str] = set()

    def origin(self, name: str) -> str:
        """A line's origin without what varies."""
        if not name:
            return name
        form = _NUMBER.sub("#", name)
        if form in self._variable:
            return form
        if form == name or (form not in self._alike and len(self._alike) >= _MOST_FORMS):
            return name
        alike = self._alike.setdefault(form, set())
        if len(alike) >= _MOST_ALIKE:
            return name
        alike.add(name)
        self._lines[form] = self._lines.get(form, 0) + 1
        if len(alike) == _MOST_ALIKE and self._lines[form] <= _LINES_EACH * _MOST_ALIKE:
            self._variable.add(form)
            return form
        return name
