"""The servers of a live document as a table: sorted, scrolled so that the one in focus is visible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from llamatel.ui.view.glyphs import UNICODE, Glyphs
from llamatel.ui.view.number_format import count, rate, seconds
from llamatel.ui.view.text_page import cut, printable

Row = Mapping[str, Any]
"""A row of the document's ``overview``."""

ORDERS = ("with alarms", "as listed", "busiest", "fullest", "fastest")
_ORDER_KEYS: dict[str, Callable[[Row], float]] = {
    "with alarms": lambda row: {"down": 2.0, "warned": 1.0}.get(row["trouble"], 0.0),
    "as listed": lambda _: 0.0,
    "busiest": lambda row: (row["deferred"] or 0) + (row["busy"] or 0),
    "fullest": lambda row: _share_used(row) or 0.0,
    "fastest": lambda row: row["decode_rate"] or 0.0,
}
_NARROW = 46
"""Columns next to the name; terminals of ``_WIDE`` columns show ``_MORE`` columns in addition."""
_WIDE = 104
_MORE = 29
_LABELS = 6
"""Labels are left out in less room."""


def ordered(document: Mapping[str, Any], order: int, search: str = "") -> list[Row]:
    """The servers whose key, labels or state contain each word of ``search``, in one of ``ORDERS``, else as listed."""
    rows = {row["key"]: row for row in document["overview"]}

    def text(row: Row) -> str:
        return f"{row['key']} {row['labels']} {row['state'] or ''} {row['trouble'] or ''}".lower()

    words = search.lower().split()
    found = (rows[key] for key in document["keys"] if all(word in text(rows[key]) for word in words))
    return sorted(found, key=_ORDER_KEYS[ORDERS[order]], reverse=True)


def state(server: Mapping[str, Any]) -> Text:
    """The state of a server, or of its row, in a few words."""
    if server["state"] in ("failed", "stalled"):
        return Text(server["state"], "red")
    if server["up"] is None:
        return Text(server["state"] or "log only", "dim")
    word = server["state"] or ("up" if server["up"] else "down")
    if server["stale"]:
        return Text(f"{word}, busy: figures are stale", "yellow")
    if word == "starting":
        return Text(word, "yellow")
    return Text(word, "green" if server["up"] else "red")


def table(
    document: Mapping[str, Any], order: int, width: int, lines: int, glyphs: Glyphs = UNICODE, *, search: str = ""
) -> Sequence[Text]:
    """A heading and at most ``lines`` servers."""
    rows = ordered(document, order, search)
    keys = [row["key"] for row in rows]
    position = keys.index(document["focus"]) if document["focus"] in keys else 0
    first = max(0, min(position - lines // 2, len(rows) - lines))
    wide = width >= _WIDE
    name_width = max(20, width - _NARROW - _MORE * wide)
    alarmed = sum(row["trouble"] is not None for row in rows)
    by = f"{ORDERS[order]} first" if order > 1 else ORDERS[order]
    if order == 0:
        by = f"{alarmed} {by}" if alarmed else ""
    shown_of = f"{position + 1} of {len(rows)}" if rows else f"none of {len(document['keys'])}"
    heading = cut(f"server ({shown_of}){', ' if by else ''}{by}", name_width, glyphs)
    titles = f"  {heading:{name_width}} state    busy  wait  kv used  tok/s"
    names = _names(rows, name_width)
    shown = [Text(titles + ("  first p95  failed  restarts" if wide else ""), "bold")]
    for row, full in list(zip(rows, names, strict=True))[first : first + lines]:
        here = row["key"] == document["focus"]
        line = Text(glyphs.arrow + " " if here else "  ", "bold cyan")
        name = cut(full, name_width, glyphs)
        room = name_width - len(name)
        labels = cut(f"  {printable(row['labels'])}", room, glyphs) if row["labels"] and room > _LABELS else ""
        line.append(name, "bold" if here else "default")
        line.append(f"{labels:{name_width - len(name)}} ", "dim")
        shown.append(line.append_text(_figures(row, document["taken_at"], glyphs, wide=wide)))
    return shown


def _names(rows: Sequence[Row], width: int) -> list[str]:
    """The servers' names; if too long, without a common host, or without the model to keep the labels."""
    names = [row["key"] for row in rows]
    if any(len(name) > width for name in names):
        host = _common_host(rows)
        names = [name.removeprefix(host) for name in names]
    addresses = Counter(name.partition(" ")[0] for name in names)
    for position, (name, row) in enumerate(zip(names, rows, strict=True)):
        address = name.partition(" ")[0]
        if row["labels"] and addresses[address] == 1 and len(name) + len(row["labels"]) > width - 2:
            names[position] = address
    return [printable(name) for name in names]


def _common_host(rows: Sequence[Row]) -> str:
    """The host, if all servers have the same, so it does not distinguish them."""
    hosts = {row["key"].partition(" ")[0].rpartition(":")[0] for row in rows}
    return hosts.pop() if len(hosts) == 1 else ""


def _figures(row: Row, now: float, glyphs: Glyphs, *, wide: bool) -> Text:
    share = _share_used(row)
    busy = glyphs.unknown if row["slots"] is None else f"{row['busy']}/{row['slots']}"
    used = glyphs.unknown if share is None else f"{100 * share:.0f} %"
    line = Text("stale", "yellow") if row["stale"] else state(row)
    if row["trouble"] == "warned" and row["up"]:
        line.stylize("yellow")
    line.truncate(8, pad=True)
    if row["trouble"] == "down" and row["down_since"] is not None:
        return line.append(f"  for {seconds(max(0.0, now - row['down_since']), glyphs)}", "red")
    line.append(f"{busy:>5}", "default")
    line.append(f"{count(row['deferred'], glyphs):>6}", "yellow" if row["deferred"] else "default")
    line.append(f"{used:>9}", "red" if share is not None and share > 0.9 else "default")
    line.append(f"{rate(row['decode_rate'], glyphs):>7}", "default")
    if wide:
        line.append(f"{seconds(row['ttft_p95_s'], glyphs):>11}", "default")
        line.append(f"{count(row['failed'], glyphs):>8}", "red" if row["failed"] else "default")
        line.append(f"{count(row['restarts'], glyphs):>10}", "yellow" if row["restarts"] else "default")
    return line


def _share_used(row: Row) -> float | None:
    """Share of the KV cache that running requests use."""
    return None if row["headroom"] is None else 1.0 - float(row["headroom"])
