"""Removes what other programs add around llama.cpp's lines: one line in, llama.cpp's own line out.

Container runtimes (docker json-file, containerd CRI, ``docker logs -t``, compose), kubectl, stern, journald, syslog,
Loki, and every program that logs llama.cpp's line as a JSON or logfmt field or after its own prefix. Wrappers are
detected per line and may be nested. The source that they name distinguishes servers that share one stream; their
timestamps date the lines.

A line of llama.cpp itself is not searched, as it may contain a client's text. Pure functions, linear in the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llamatel.llama.log.client_text import QUOTATION_START, quoted_from
from llamatel.llama.log.log_line import OWN_QUOTED, OWN_START, is_own_line, starts_like_llama_cpp
from llamatel.llama.log.wrapper_fields import Carried, entries, from_fields, from_json, label_set, pairs, unescape
from llamatel.llama.log.wrapper_time import JOURNAL_FULL, RFC3339, SYSLOG, find_time

_MOST_WRAPPERS = 5
_LONGEST_NAME = 256
_LONGEST = 1 << 16
_LONGEST_PREFIX = 300
_MOST_SOURCES = 1024
_DIGIT = re.compile(r"[0-9a-f]")
_COLOUR = re.compile(
    r"(?:\x1b|(?<!\\)\\(?:u001[bB]|x1[bB]|033|e)|#033|\^\[)\[[0-9;?]{0,32}[A-Za-z]"
    r"|\x1b(?:\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)|[()][0-9A-Z])"  # a terminal's titles and character sets
)
_COLOUR_SIGNS = ("\x1b", "\\u001", "\\x1", "\\033", "\\e[", "#033", "^[[")
_RSYSLOG_ESCAPE = re.compile(r"#(0[0-3][0-7]|177)")
_CRI = re.compile(rf"({RFC3339}) (?:stdout|stderr) ([FP])(?::\S{{0,64}})?(?: (.*)|$)", re.DOTALL)
_MONOTONIC = r"\[ *\d{1,12}\.\d{1,9}(?: <[^>]{0,20}>)? ?\]"
_SYSLOG_LINE = re.compile(
    rf"(?:<\d{{1,3}}>)?((?:{JOURNAL_FULL}|{RFC3339}|{SYSLOG}|\d{{10}}\.\d{{3,9}}|{_MONOTONIC})"
    r" ([^\s\[]\S{0,254}) ([^\s\[\]:]{1,128})(?:\[(\d{1,10})\])?): (.*)",
    re.DOTALL,
)
_OWN_FUNCTION = re.compile(r"(?<![\w.-])(?:slot|srv|que|cmn)$")
_RFC5424 = re.compile(
    rf"(<\d{{1,3}}>\d{{1,2}} (?:{RFC3339}|-) (\S{{1,255}}) (\S{{1,48}}) (\S{{1,128}}) \S{{1,32}} )"
    r"(?:-|(?:\[(?:[^\]\\]|\\.){0,1000}\]){1,9})(?: \ufeff?(.*)|$)",
    re.DOTALL,
)
_COMPOSE = re.compile(r"(?:\d\d:\d\d:\d\d(?:\.\d{1,6})? )?((?:\d{1,5}\|)?[\w.@/-]{1,200}) *\|(?: (.*)|$)", re.DOTALL)
_KUBECTL = re.compile(r"\[((?:pod|container)/[^\]\s]{1,300})\] ?(.*)", re.DOTALL)
_LABELS = re.compile(rf"(?:({RFC3339})\s?)?(\{{\w{{1,64}}=\"[^{{}}]{{0,2000}}\}}) ?(.*)", re.DOTALL)
_QUOTED = re.compile(
    r"\s{0,32}(?:[-*+]\s{1,8})?(?:\"?[\w@.-]{1,64}\"?(?::| =)\s{1,8})?"
    rf"(b?)([\"'])(?={OWN_QUOTED})(.*)\2[,;]?\s{{0,8}}$",
    re.DOTALL,
)
_OBJECT = re.compile(r"(?<![\"'])\{\s{0,10}\"")
_MAP = re.compile(r"\{\s{0,10}(?:'|:?\w{1,64}(?:: |\s?=>))")
"""The start of a map as Python, JavaScript or Ruby prints it."""
_FIELDS_AFTER = re.compile(r"\t(?:\{\"[^\t]{0,4096}\}|\d{13})$")
_DATED = re.compile(rf"(\[?{RFC3339}\]?)[ \t](.*)", re.DOTALL)
_JOURNAL_FIELD = re.compile(r"\s{0,8}(?:\"MESSAGE\"\s?:\s?|MESSAGE=)(.*)", re.DOTALL)
_PREFIXED = re.compile(
    r"(?:[^\"'{}\\]|\w\{[^{}]{0,200}\}:|\{[\w.:/ -]{0,100}\}){0,300}?[^\w.\"'{}\\-]\s{0,4}"
    rf"(?={OWN_START})"
)
_BEFORE = r"[^\"'{}\\]{0,300}?[\s\]:|=>)\u203a]\s{0,4}"
_PREFIXED_QUOTATION = re.compile(rf"{_BEFORE}(?={QUOTATION_START})")
_PREFIXED_LIBRARY = re.compile(
    rf"{_BEFORE}(?=(?:llama_|ggml_|load_|print_|common_|build_)\w{{1,60}}: |{QUOTATION_START})"
)
_OWN_INSIDE = re.compile(rf"[\s\]:|=>)\u203a\"']{OWN_START}")
_GO_RECORD = re.compile(r"time=\S{10,40} level=[A-Z+\d]{1,12} source=[\w.-]{1,64}\.go:\d{1,6} msg=")
_WORD = re.compile(r"[^\s|,;=\[\]()<>\u203a]{1,200}")
_NO_NAME = re.compile(
    r"(?i:trace|debug|dbg|info|inf|information|notice|warn|warning|wrn|error|err|fatal|ftl|critical|crit|panic|stderr|stdout"
    r"|[diwef]|msg|message|line|log|t|z|utc|gmt|cet|cest|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
    r"|mon|tue|wed|thu|fri|sat|sun|am|pm)|[^A-Za-z]*T?[^A-Za-z]*Z?|\d{1,2}[/-][A-Za-z]{3}[/-]\d{2,4}\S{0,40}|@4[0-9a-f]{23}|[A-Za-z_]{1,32}:\d{4}-\d\d-\d\d\S{0,40}|0x[0-9a-fA-F]+|[\d.:]+(?:[nmu\u00b5]?s|m|h|[AP]M)"
)
"""Words of a prefix that name no source: levels, dates, numbers, durations."""


class KnownWrappers:
    """What the lines of each source have around them, by its first lines that can only be llama.cpp's.

    Anything further around a line is a client's text. Lines that cannot be told from other text, such as the rest of a
    quotation, have the same prefix as the lines before.
    """

    def __init__(self) -> None:
        self._complete: dict[tuple[str, int], bool] = {}
        """By source and number of wrappers removed: whether llama.cpp's line follows."""
        self._prefixes: dict[tuple[str, int], dict[int, set[str]]] = {}
        """By the same and their length: prefixes, with 0 for each digit."""
        self._number = 0
        self._passed: list[tuple[tuple[str, int], str | None]] = []
        """Where the line at hand had another wrapper, and the prefix that it was."""

    def is_complete(self, found: Carried) -> bool:
        """Whether lines of this source have no further wrapper."""
        return self._complete.get(_key(found), False)

    def next_layer(self, found: Carried) -> Carried | None:
        """The line without one more wrapper; None if there is none."""
        key, text = _key(found), found.text
        for length, masks in self._prefixes.get(key, {}).items():
            if _masked(text[:length]) in masks:
                self._passed.append((key, None))
                return _without_prefix(text, length)
        layer = _outermost(text)
        if layer is not None:
            start = text.find(layer.text)
            is_prefix = 0 < start < _LONGEST_PREFIX and layer == _without_prefix(text, start)
            self._passed.append((key, text[:start] if is_prefix else None))
        return layer

    def learn(self, found: Carried | None) -> None:
        """Record what was around the line at hand."""
        if found is not None and len(self._complete) < _MOST_SOURCES and is_own_line(found.text):
            for key, prefix in self._passed:
                self._complete.setdefault(key, False)
                if prefix is not None and self._number < _MOST_SOURCES:
                    self._number += 1
                    self._prefixes.setdefault(key, {}).setdefault(len(prefix), set()).add(_masked(prefix))
            self._complete.setdefault(_key(found), True)
        self._passed.clear()


def _key(found: Carried) -> tuple[str, int]:
    """Source and number of wrappers removed; sources that differ in numbers have the same around their lines."""
    return _masked(found.origin), found.layers


def _masked(prefix: str) -> str:
    return _DIGIT.sub("0", prefix)


def unwrap(line: str, known: KnownWrappers | None = None) -> Carried | None:
    """llama.cpp's line from another program's record; None where there is no wrapper.

    The text of a record may hold several lines. ``known``: what is known of the stream, which the line adds to.
    """
    if is_own_line(line):
        return None
    plain = without_colours(line[:_LONGEST])
    found = peel(Carried(plain), known=known)
    if known is not None:
        known.learn(found)
    return None if found.text == line else found


def peel(found: Carried, most: int = _MOST_WRAPPERS, *, known: KnownWrappers | None = None) -> Carried:
    """The record without further wrappers around its text, up to a maximum number; see ``unwrap``."""
    for _ in range(most):
        if found.partial or found.layers == _MOST_WRAPPERS or is_own_line(found.text):
            break
        if quoted_from(found.text) is not None or (known is not None and known.is_complete(found)):
            break
        layer = _outermost(found.text) if known is None else known.next_layer(found)
        if layer is None:
            break
        found = Carried(
            without_colours(layer.text),
            "/".join(filter(None, (found.origin, layer.origin))),
            found.name or layer.name,
            layer.process or found.process,
            layer.wall or found.wall,
            layer.partial,
            found.layers + 1,
        )
    return found


def without_colours(text: str) -> str:
    """Text without colour codes (in any escaping), byte order mark and NULs."""
    text = text.lstrip("\ufeff\0\u200b")
    if any(sign in text for sign in _COLOUR_SIGNS):
        text = _COLOUR.sub("", text)
    return text.lstrip(" \t\xa0") if text[:1] in " \t\xa0" and is_own_line(text.lstrip()) else text


def holds_own_line(text: str) -> bool:
    """Whether a text contains llama.cpp's line, after a prefix or in quotes."""
    return _OWN_INSIDE.search(text) is not None


def prefix_before(text: str, start: int) -> Carried:
    """The names in a record's prefix."""
    return _after_prefix(text, start)._replace(text="")


def _outermost(text: str) -> Carried | None:
    for wrapper in _WRAPPERS:
        if (found := wrapper(text)) is not None:
            return found
    return None


def _quoted(text: str) -> Carried | None:
    """A whole line in quotes, as YAML, JSON and Python write it."""
    found = _QUOTED.match(text)
    if found is None:
        return None
    python, quote, content = found.groups()
    escaped = python or quote == '"' or "\\\\" in content or "\\'" in content  # else as in YAML
    return Carried(unescape(content).rstrip("\n") if escaped else content.replace("''", "'"))


def _json(text: str) -> Carried | None:
    """A JSON object, at the start or after a prefix."""
    opened = _OBJECT.search(text, 0, 400)
    if opened is None or "=>" in text[: opened.start()]:
        return None
    start = opened.start()
    if "\t" in text[:start] and (fields := _FIELDS_AFTER.search(text, start + 1)) is not None:
        text = text[: fields.start()]
    if is_own_line(text[start:]):
        return _after_prefix(text, start)
    found = from_json(text[start:], holds_own_line)
    if found is None:
        return None
    if not text[:start].strip("\x1e \t"):
        return found
    prefix = _after_prefix(text, start)
    origin = "/".join(filter(None, (prefix.origin, found.origin)))
    return found._replace(origin=origin, wall=found.wall or prefix.wall)


def _cri(text: str) -> Carried | None:
    found = _CRI.match(text)
    return found and Carried(found.group(3) or "", wall=find_time(found.group(1)), partial=found.group(2) == "P")


def _syslog(text: str) -> Carried | None:
    found = _SYSLOG_LINE.match(text) or _RFC5424.match(text)
    if found is None:
        return None
    head, host, tag, process, message = found.groups()
    if starts_like_llama_cpp(text[found.start(2) :]) or _OWN_FUNCTION.search(host) is not None:
        return None  # a date and llama.cpp's words: neither host nor program
    if "#" in (message or ""):
        message = _RSYSLOG_ESCAPE.sub(lambda escape: chr(int(escape.group(1), 8)), message)
    return Carried(message or "", f"{host}/{tag}", None, process, find_time(head))


def _compose(text: str) -> Carried | None:
    found = _COMPOSE.match(text)
    return found and Carried(found.group(2) or "", found.group(1), found.group(1))


def _kubectl(text: str) -> Carried | None:
    found = _KUBECTL.match(text)
    return found and Carried(found.group(2), found.group(1), found.group(1).split("/")[1])


def _labels(text: str) -> Carried | None:
    found = _LABELS.match(text)
    if found is None:
        return None
    return label_set(found.group(2))._replace(text=found.group(3), wall=find_time(found.group(1) or ""))


def _journal_field(text: str) -> Carried | None:
    found = _JOURNAL_FIELD.match(text)
    if found is None:
        return None
    value = found.group(1)
    if value[:1] == '"':
        value = unescape(value[1:].rpartition('"')[0])
    return Carried(value)


def _logfmt(text: str) -> Carried | None:
    if '="' not in text and "='" not in text and "=>" not in text:
        return None
    if starts_like_llama_cpp(text):
        return None
    found = from_fields(pairs(text), holds_own_line)
    if found is not None and _GO_RECORD.search(text) and not starts_like_llama_cpp(found.text):
        return None  # Ollama's own record: its other fields matter (ollama_log)
    return found and found._replace(wall=found.wall or find_time(text[: text.find("=")]))


def _map(text: str) -> Carried | None:
    if _MAP.match(text) is None:
        return None
    return from_fields(entries(text), holds_own_line)


def _prefixed(text: str) -> Carried | None:
    """Any other prefix before a line that can only be llama.cpp's."""
    found = _PREFIXED.match(text)
    quoted = _PREFIXED_QUOTATION.match(text) if found is not None else None
    if quoted is not None and found is not None and quoted.end() < found.end():
        found = quoted
    if found is None and not starts_like_llama_cpp(text):
        found = _PREFIXED_LIBRARY.match(text)
    if found is None:
        return None
    return _without_prefix(text, found.end())


def _without_prefix(text: str, start: int) -> Carried:
    carried = _after_prefix(text, start)
    if "\t" in text[:start]:  # zap's console writes further fields after the message
        carried = carried._replace(text=_FIELDS_AFTER.sub("", carried.text))
    return carried


def _dated(text: str) -> Carried | None:
    found = _DATED.match(text)
    return found and Carried(found.group(2), wall=find_time(found.group(1)))


def _after_prefix(text: str, start: int) -> Carried:
    prefix = text[:start]
    words = (word.strip(".:-'\"*#/") for word in _WORD.findall(prefix))
    names = [word for word in words if word and _NO_NAME.fullmatch(word) is None]
    return Carried(text[start:], " ".join(names)[:_LONGEST_NAME], None, None, find_time(prefix))


Wrapper = Callable[[str], Carried | None]
_WRAPPERS: tuple[Wrapper, ...] = (
    _quoted, _cri, _syslog, _kubectl, _labels, _compose, _prefixed, _json, _map, _journal_field, _logfmt, _dated,
)  # fmt: skip
"""``_prefixed`` is before those that parse quotes: llama.cpp's line after a prefix may contain client text."""
