"""The screen of ``llamatel top``, drawn from a live document and the view state. Pure: no clock, no terminal."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.text import Text

from llamatel.records import Completion, Outcome, RecomputeCause, ServerInfo
from llamatel.ui.top.server_detail import Document, server_lines
from llamatel.ui.top.server_table import ORDERS, Row, ordered, state, table
from llamatel.ui.view.glyphs import UNICODE, Glyphs
from llamatel.ui.view.number_format import plural, rate, seconds
from llamatel.ui.view.request_line import request_header, request_line
from llamatel.ui.view.text_page import cut, printable
from llamatel.ui.view.waterfall import waterfall

SORTS = ("newest", "slowest", "first token", "tokens")
FILTERS = ("all", "failed", "ok")
HELP = (
    ("tab, left, right", "next or previous server"),
    ("home, end", "first or last server"),
    ("/", "search servers"),
    ("o", f"order of servers: {', '.join(ORDERS)}"),
    ("up, down", "select a request; enter: waterfall, escape: back"),
    ("s", f"sort requests: {', '.join(SORTS)}"),
    ("f", f"filter requests: {', '.join(FILTERS)}"),
    ("p", "pause"),
    ("q", "quit"),
    ("", ""),
    ("KV active", "tokens of running requests; when they fill the pool, requests fail"),
    ("KV cached", "tokens that idle slots hold until running requests need the space"),
    ("first", "time to first token: queue and prefill"),
    ("per token", "time for each token after the first"),
    ("cut off", "answer truncated: the slot's context was full"),
    ("stale", "server busy, figures are old"),
)
_SORT_KEYS: dict[str, Callable[[Completion], float]] = {
    "newest": lambda request: request.ended_at,
    "slowest": lambda request: request.duration_s,
    "first token": lambda request: request.time_to_first_token_s or -1.0,
    "tokens": lambda request: request.generated or -1,
}
_LABELS_ROOM = 12
"""The title has the server's labels if there are more columns than this for them."""
_SERVERS_SHOWN = 8
"""Minimum number of rows; tall terminals show more."""


@dataclasses.dataclass
class Choices:
    """The view state, changed by keys."""

    focus: str | None = None
    order: int = 0
    sort: int = 0
    filter: int = 0
    selected: int = 0
    waterfall: bool = False
    paused: bool = False
    help: bool = False
    search: str = ""
    """Only servers whose key contains this text, in lower case, are listed."""
    typing: bool = False
    """Keys are text of the search."""

    def press(self, key: str, document: Document) -> bool:
        """Handle a key; False for quit."""
        if self.typing:
            self._type(key, document)
        elif key == "q":
            return False
        elif key in {"tab", "right", "left", "home", "end"}:
            self.focus = _chosen_server(document, self, key)
            self.selected, self.waterfall = 0, False
        elif key in {"up", "down"}:
            last = len(visible(document, self)) - 1
            self.selected = max(0, min(self.selected + (1 if key == "down" else -1), last))
        elif key == "enter":
            self.waterfall = bool(visible(document, self)) and not self.waterfall
        else:
            self._change_view(key)
        return True

    def _change_view(self, key: str) -> None:
        if key == "/":
            self.typing, self.search = True, ""
        elif key == "escape":
            self.waterfall = self.help = False
            self.search = ""
        elif key == "s":
            self.sort = (self.sort + 1) % len(SORTS)
        elif key == "o":
            self.order = (self.order + 1) % len(ORDERS)
        elif key == "f":
            self.filter, self.selected = (self.filter + 1) % len(FILTERS), 0
        elif key in {"p", " "}:
            self.paused = not self.paused
        elif key in {"h", "?"}:
            self.help = not self.help

    def _type(self, key: str, document: Document) -> None:
        """Change the search text; the first server found gets the focus."""
        if key in {"enter", "escape"}:
            self.typing = False
            self.search = self.search if key == "enter" else ""
        elif key == "backspace":
            self.search = self.search[:-1]
        elif len(key) == 1 and key.isprintable():
            self.search += key
        rows = ordered(document, self.order, self.search)
        if rows and self.focus not in [row["key"] for row in rows]:
            self.focus, self.selected = str(rows[0]["key"]), 0


def _chosen_server(document: Document, choices: Choices, key: str) -> str | None:
    """The server that a key moves to."""
    keys = [str(row["key"]) for row in ordered(document, choices.order, choices.search)]
    if not keys:
        return choices.focus
    if key in {"home", "end"}:
        return keys[0 if key == "home" else -1]
    # If tab is pressed faster than documents arrive, the document still has the previous focus.
    now = next((keys.index(known) for known in (choices.focus, document["focus"]) if known in keys), 0)
    return keys[(now + (-1 if key == "left" else 1)) % len(keys)]


def completion_of(request: Mapping[str, Any]) -> Completion:
    """A request of the document as a Completion, as far as its fields are in the document."""
    made = {"server", "outcome", "prompt_computed", "recompute_cause"}
    fields = {field.name for field in dataclasses.fields(Completion)} - made
    cause = request["recompute_cause"]
    prompt, cached = request["prompt_tokens"], request["prompt_cached"]
    return Completion(
        server=ServerInfo("", model=printable(request["server"]).partition(" ")[2] or None),
        outcome=Outcome(request["outcome"]),
        recompute_cause=None if cause is None else RecomputeCause(cause),
        prompt_computed=None if prompt is None or cached is None else prompt - cached,
        **{name: value for name, value in request.items() if name in fields},
    )


def visible(document: Document, choices: Choices) -> list[tuple[Completion, str | None]]:
    """The requests of the server in focus, filtered and sorted, with their trace ids."""
    wanted = FILTERS[choices.filter]
    found = [
        (completion_of(request), request["trace_id"])
        for request in document["requests"]
        if request["server"] == document["focus"]
        and (wanted == "all" or (request["outcome"] == "ok") == (wanted == "ok"))
    ]
    return sorted(found, key=lambda one: _SORT_KEYS[SORTS[choices.sort]](one[0]), reverse=True)


def screen(
    document: Document,
    choices: Choices,
    width: int,
    height: int,
    *,
    glyphs: Glyphs = UNICODE,
    error: str | None = None,
) -> Text:
    """The screen in ``height`` lines of at most ``width`` columns; ``error``: why the document is not current."""
    server = next((one for one in document["servers"] if one["key"] == document["focus"]), None)
    lines = [_title(document, server, choices, width, glyphs)]
    if error:
        lines.append(Text(f"no update: {error}", "red"))
    lines += _alarms(document, width)
    if choices.help:
        lines += _help(width)
    elif server is None:
        lines.append(Text("no server is watched yet", "dim"))
    else:
        if len(document["servers"]) > 1:
            rest = height - 2 - len(lines) - len(detail := server_lines(document, server, width, glyphs))
            used_by_requests = min(len(visible(document, choices)) + 1, max(height // 3, 6))
            rows = max(_SERVERS_SHOWN, rest - used_by_requests)
            lines += table(document, choices.order, width, rows, glyphs, search=choices.search)
            lines += detail
        else:
            lines += server_lines(document, server, width, glyphs)
        lines += _requests(document, choices, width, height - len(lines) - 1, glyphs)
    footer = (
        Text(f"search: {choices.search}_", "yellow")
        if choices.typing
        else Text("q quit  h help  p pause  s sort  f filter  tab server  enter waterfall", "dim")
    )
    shown = lines[: height - 1]
    shown += [Text()] * (height - 1 - len(shown))
    for line in (*shown, footer):
        line.no_wrap = True
        if line.cell_len > width:
            line.truncate(width - 1)
            line.append(glyphs.ellipsis)
    return Text("\n").join((*shown, footer))


def _help(width: int) -> list[Text]:
    lines = []
    for name, meaning in HELP:
        for part in textwrap.wrap(meaning, max(width - 20, 20)) or [""]:
            lines.append(Text(f"  {name:18}", "bold").append(part, "default"))
            name = ""  # noqa: PLW2901 - its meaning continues on the next line
    return lines


def _title(document: Document, server: Mapping[str, Any] | None, choices: Choices, width: int, glyphs: Glyphs) -> Text:
    """The title line. A long server name is cut, its state never."""
    end = Text()
    if server is not None:
        end.append_text(state(server)).append("  ")
        if server["started_at"] is not None and server["up"]:
            end.append(f"for {seconds(max(0.0, document['taken_at'] - server['started_at']))}  ", "dim")
    end.append(time.strftime("%H:%M:%S", time.localtime(document["taken_at"])), "dim")
    if choices.paused:
        end.append("  paused", "yellow")
    line = Text("llamatel top  " if width >= 60 else "", "bold")
    if server is not None:
        room = max(width - line.cell_len - end.cell_len - 2, 12)
        name = cut(printable(server["key"]), room, glyphs)
        line.append(name, "bold cyan").append("  ")
        labels = next((row["labels"] for row in document["overview"] if row["key"] == server["key"]), "")
        if labels and room - len(name) > _LABELS_ROOM:
            line.append(cut(printable(labels), room - len(name) - 2, glyphs), "dim").append("  ")
    return line.append_text(end)


def _alarms(document: Document, width: int) -> list[Text]:
    """The last two alarms in full: the flag that helps is at the end of the text."""
    recent = [alarm for alarm in document["alarms"] if document["taken_at"] - alarm["at"] < 60]
    lines = []
    for alarm in recent[-2:]:
        for number, part in enumerate(textwrap.wrap(printable(alarm["text"], 400), max(width - 2, 20))):
            lines.append(Text("  " if number else "! ", "bold yellow").append(part, "yellow"))
    return lines


def _requests(document: Document, choices: Choices, width: int, room: int, glyphs: Glyphs) -> list[Text]:
    requests = visible(document, choices)
    choices.selected = max(0, min(choices.selected, len(requests) - 1))
    total = next(row["requests"] for row in document["overview"] if row["key"] == document["focus"])
    if total is None:
        return [Text("no request log: requests need llamatel serve, or attach --log", "dim")]
    if not total:
        return [Text("no requests yet", "dim")]
    if not requests:
        return [Text(f"no requests ({FILTERS[choices.filter]})", "dim")]
    if choices.waterfall:
        completion, trace_id = requests[choices.selected]
        return list(waterfall(completion, width, glyphs, trace_id=trace_id).split("\n"))
    heading = request_header(glyphs)
    if choices.sort or choices.filter:
        heading = Text(f"{SORTS[choices.sort]} first, {FILTERS[choices.filter]}   ", "yellow").append_text(heading)
    lines = [heading]
    shown = max(1, room - 1)
    first = max(0, min(choices.selected - shown + 1, len(requests) - shown))
    for index, (completion, _) in enumerate(requests[first : first + shown], first):
        line = request_line(completion, width - 1, glyphs)
        if index == choices.selected:
            line.stylize("reverse", 0, 8)
        lines.append(line)
    return lines


def plain_lines(document: Document) -> list[str]:
    """One plain line per server, for pipes."""
    rows = {row["key"]: row for row in document["overview"]}
    return [_plain_line(document, server, rows[server["key"]]) for server in document["servers"]] or [
        "no server is watched yet"
    ]


def _plain_line(document: Document, server: Mapping[str, Any], row: Row) -> str:
    cache = server["kv_cache"]
    parts = [
        time.strftime("%H:%M:%S", time.localtime(document["taken_at"])),
        " ".join(filter(None, (printable(server["key"]), printable(row["labels"])))),
        state(server).plain,
    ]
    if row["slots"] is not None:
        parts.append(f"busy {row['busy']}/{row['slots']}")
    if server["deferred"] is not None:
        parts.append(f"waiting {server['deferred']}")
    if cache and cache["active"] is not None:
        of = f"/{cache['capacity']}" if cache["capacity"] else ""
        parts.append(f"kv {cache['active']}{of} active {cache['cached'] or 0} cached")
    if server["decode_rate"] is not None:
        parts.append(f"{rate(server['decode_rate'])} tok/s")
    if row["requests"]:
        parts.append(plural(row["requests"], "request"))
        if row["failed"]:
            parts.append(f"{row['failed']} failed")
        if row["ttft_p95_s"] is not None:
            parts.append(f"first token p95 {seconds(row['ttft_p95_s'])}")
    return "  ".join(parts)
