"""Client text that llama.cpp quotes in a text log; it may look like llama.cpp's own lines.

llama.cpp prints some rejected input unchanged, line ends included: a grammar that it cannot parse
(src/llama-grammar.cpp), patterns of a JSON schema that it cannot convert (common/json-schema-to-grammar.cpp), names of
samplers (common/sampling.cpp), errors of llguidance. Each starts and ends with llama.cpp's own words, which a client
can also send: a text log is only as trustworthy as the clients (docs/security.md). JSONL has no such lines.
"""

from __future__ import annotations

import re

_MESSAGE = re.compile(r'\d\.\d{3}\.\d{3} [A-Z] |"msg":"|srv {0,16}send_error: |llama_grammar_init_impl: ')
_ONE_LINE = re.compile(r" at line \d{1,9} column \d{1,9}$")
"""The end of an error of llguidance's JSON parser, which quotes nothing."""
_REFUSED = ("ailed to parse grammar", "ailed to initialize sampl")
_UNSTAMPED_REFUSAL = "failed to parse grammar"
_STARTS = {
    "error parsing grammar: ": None,
    "llg error: ": "",
    "WARNING: JSON schema conversion was incomplete: ": "accepting any string",
    "unable to match sampler by name '": "'",
    "unsupported Responses tool type '": "' skipped",
    "unknown error while validating model '": "'",
}
"""Start of a quotation, and the end of its last line ("": empty); None: a rejection message follows it."""
_MAX_AGE_S = 1.0
"""A quotation is written at once: if its end is missing, it ends after this time."""
_MAX_LINES = 10_000


_ROUTER_CHILD = re.compile(r"\[\d{1,5}\] ?")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
QUOTATION_START = rf"(?:srv {{0,16}}\S{{1,64}}: |\w{{1,64}}: )?(?:{'|'.join(map(re.escape, _STARTS))})"
"""How a line starts that starts a quotation, as a regular expression."""
# Two threads may write one line: the start of a message, and a quotation.
_START = re.compile(rf"(?:\d{{1,7}}\.\d\d\.\d{{3}}\.\d{{3}} (?:[A-Z] )?)?{QUOTATION_START}")
"""Only at the start of a line: within a line, a client may have written these words to hide the next lines."""


def quoted_from(line: str) -> str | None:
    """The words at the start of a line that start a quotation; None if there is none."""
    for words in _STARTS:  # much faster than the expression, which few lines need
        if words in line:
            found = _START.match(_bare(line))
            return None if found is None else next(words for words in _STARTS if found.group().endswith(words))
    return None


def _bare(line: str) -> str:
    """A line without colours and without the port of a router's child."""
    if "\x1b" in line:
        line = _COLOUR.sub("", line)
    if line[:1] == "[" and (child := _ROUTER_CHILD.match(line)) is not None:
        return line[child.end() :]
    return line


class ClientText:
    """Finds quotations that span lines. Not thread-safe: used with the lock of the log reader."""

    def __init__(self) -> None:
        self._open: dict[str, None] = {}
        """The starts of those that have not ended: text that is quoted may start another, as may a later request."""
        self._since = 0.0
        self._lines = 0
        """Both since the newest start."""
        self.stamped = False
        """Whether llama.cpp's lines have timestamps; then one without ends no quotation. Set by the owner."""

    @property
    def open(self) -> bool:
        """Whether one has started and not finished."""
        return bool(self._open)

    def contains(self, line: str, now: float) -> bool:
        """Whether a line, read at Unix time ``now``, is part of one."""
        start = quoted_from(line)
        if start is not None and start not in self._open:
            self._open[start] = None
            self._since, self._lines = now, 0
        if not self._open:
            return False
        self._lines += 1
        line = _bare(line)
        is_message = _MESSAGE.search(line) is not None
        refused = (line == _UNSTAMPED_REFUSAL and not self.stamped) or (
            is_message and any(words in line for words in _REFUSED)
        )
        if refused and not all(_STARTS[each] for each in self._open):
            self._open.clear()
            return not is_message
        if now - self._since > _MAX_AGE_S or self._lines > _MAX_LINES:
            self._open.clear()
            return False
        for each in [each for each in self._open if self._ends(each, line)]:
            del self._open[each]
        return True

    def _ends(self, start: str, line: str) -> bool:
        """Whether a line is the last of the quotation that has started so."""
        end = _STARTS[start]
        if end is None:
            return False
        if end:
            return line.endswith(end) and not line.endswith(start)
        return not line or (self._lines == 1 and _ONE_LINE.search(line) is not None)
