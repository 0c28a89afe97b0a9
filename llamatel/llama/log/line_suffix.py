"""Removes what other programs write after llama.cpp's line: fields, brackets, tags, table borders, code positions.

Its form is learned from lines whose own end is certain, numbers apart, and removed from all lines of the same log.
Without it, an expression that needs a line's end finds nothing, and the text of an error has the addition in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llamatel.llama.log.key_value_line import START as KEY_VALUE_START
from llamatel.llama.log.log_line import OWN_START
from llamatel.llama.log.wrapper_fields import Carried

_TIMING = r" {0,16}(?:prompt )?eval time = [^()]{1,80}\([^()]{1,80} tokens per second\)"
_OWN_END = re.compile(
    r"(?:\[\d{1,5}\] ?)?(?:\d{1,7}\.\d\d\.\d{3}\.\d{3} [A-Z] )?"
    r"(?:slot {1,16}\S{1,64}: id {1,4}\d{1,3} \| task -?\d{1,12} \| (?:processing task(?:, is_child = [01]|(?!,))"
    rf"|stop processing: n_tokens = \d{{1,12}}, truncated = [01]|{_TIMING})"
    rf"|srv {{1,16}}update_slots: all slots are idle|{_TIMING})(?!\w)"
)
"""Whole lines, which hold no text of a client's."""
_OWN = re.compile(OWN_START)
_BOUNDED = re.compile(rf"(?:\[\d{{1,5}}\] ?)?\{{|{KEY_VALUE_START.pattern}")
"""Lines whose form shows their end: JSON, key=value lines of forks."""
_VARIABLE = re.compile(r"(\s+|[0-9]+)")
_FIELDS = r"(?:\s{1,200}[A-Za-z_@][\w.@/-]{0,63}=(?:\"(?:[^\"\\]|\\.){0,200}\"|'[^']{0,200}'|[^\s\"']{0,200})){1,20}"
_ONLY_FIELDS = re.compile(_FIELDS)
_LONGEST = 400
_MOST_FORMS = 8
_CLEAN = 3
"""After so many lines of llama.cpp alone, with nothing after them, no others are examined."""


class LineSuffix:
    """What follows the lines of one log."""

    def __init__(self) -> None:
        self._forms: dict[str, re.Pattern[str]] = {}
        self._clean = 0

    @property
    def found(self) -> bool:
        """Whether something follows the lines."""
        return bool(self._forms)

    def removed(self, lines: Iterable[Carried]) -> Iterable[Carried]:
        """The lines without it."""
        if not self._forms and self._clean >= _CLEAN:
            return lines
        return [each._replace(text=self._without(each.text)) for each in lines]

    def _without(self, text: str) -> str:
        if _BOUNDED.match(text) is not None:
            return text
        if (end := _OWN_END.match(text)) is not None:
            self._learn(text[end.end() :])
        tail = text[-_LONGEST:]
        for form in self._forms.values():
            if (found := form.search(tail)) is not None:
                return text[: len(text) - len(tail) + found.start()]
        return text

    def _learn(self, suffix: str) -> None:
        if not suffix.strip():
            self._clean += 1
        elif len(suffix) <= _LONGEST and _OWN.search(suffix) is None and len(self._forms) < _MOST_FORMS:
            self._clean = 0
            form = _FIELDS if _ONLY_FIELDS.fullmatch(suffix) else _form(suffix)
            if form not in self._forms:
                self._forms[form] = re.compile(form + r"\s{0,200}$")


def _form(suffix: str) -> str:
    """An expression for a text whose numbers and spaces vary."""
    parts = _VARIABLE.split(suffix.rstrip())
    return "".join(
        r"\s{0,200}" if part.isspace() else "[0-9]{1,20}" if part.isdecimal() else re.escape(part) for part in parts
    )
