"""One server in ``llamatel top``: its KV pool, decode rate, latencies, requests by outcome, GPUs and slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from llamatel.ui.view.glyphs import OUTCOME_STYLES, UNICODE, Glyphs
from llamatel.ui.view.number_format import count, exact, rate, seconds
from llamatel.ui.view.text_page import printable, size

Document = Mapping[str, Any]

_SLOTS_SHOWN = 16
_GPUS_SHOWN = 8
_WIDE_ENOUGH = 72
"""Terminal width from which slots have bars and three percentiles are shown."""
_SPARKS = " ▁▂▃▄▅▆▇█"
_ASCII_SPARKS = " .:-=+*#@"


def server_lines(document: Document, server: Mapping[str, Any], width: int, glyphs: Glyphs) -> list[Text]:
    """The lines of one server, at most ``width`` columns wide."""
    slots, summary, history = server["slots"], document["summary"], document["history"]
    cells = max(10, min(width - 52, 60))
    lines = [
        Text("a router: slots and KV caches belong to its models", "dim")
        if _is_router(document, server)
        else _pool(server, cells, glyphs)
    ]
    busy = None if slots is None else sum(slot["busy"] for slot in slots)
    of = "" if slots is None else f" of {len(slots)}"
    room = max(width - 48, 0)  # next to the figures
    line = Text("decode  ", "bold").append(_spark(history["decode_rate"], min(20, room * 5 // 8), glyphs), "green")
    line.append(f" {rate(server['decode_rate'], glyphs):>5} tok/s", "default")
    line.append("  busy  ", "bold").append(_spark(history["busy"], min(12, room * 3 // 8), glyphs), "cyan")
    line.append(f" {count(busy, glyphs)}{of}", "default")
    line.append("  waiting  ", "bold")
    line.append(count(server["deferred"], glyphs), "yellow" if server["deferred"] else "default")
    lines.append(line)
    if summary["requests"]["total"]:
        quantiles = ("p50", "p95", "p99") if width >= _WIDE_ENOUGH else ("p50", "p95")
        times = (("first", "time_to_first_token_s"), ("per token", "time_per_output_token_s"))
        known = [(name, summary[key]) for name, key in times if summary[key]["n"]]
        if known:
            line = Text(f"{'/'.join(quantiles)}  ", "bold")
            for name, values in known:
                parts = "/".join(seconds(values[each], glyphs) for each in quantiles)
                line.append(f"{name} ", "dim").append(f"{parts}  ", "default")
            lines.append(line)
        line = Text("requests  ", "bold")
        for name, style in {"total": "default", **OUTCOME_STYLES}.items():
            if number := summary["requests"].get(name):
                line.append(f"{number:,} {name.replace('_', ' ')}  ", style)
        lines.append(line.append_text(_hits(server)).append_text(_bandwidth(document)))
    lines += [_gpu(device, glyphs) for device in document["devices"][:_GPUS_SHOWN]]
    lines += _slots(server, width, glyphs)
    return lines


def _gpu(device: Mapping[str, Any], glyphs: Glyphs) -> Text:
    line = Text("GPU  ", "bold").append(printable(device["name"], 24)).append("  ")
    busy = device["utilization"]
    line.append("busy " + (glyphs.unknown if busy is None else f"{100 * busy:.0f} %"))
    line.append(f"  {size(device['memory_used'], glyphs)} of {size(device['memory_limit'], glyphs)}")
    if device["power_w"] is not None:
        line.append(f"  {device['power_w']:.0f} W")
    if device["temperature_c"] is not None:
        line.append(
            f"  {device['temperature_c']:.0f} °C" if glyphs is UNICODE else f"  {device['temperature_c']:.0f} C"
        )
    if device["throttled_by"]:
        line.append(f"  throttled: {', '.join(device['throttled_by'])}", "yellow")
    return line


def _hits(server: Mapping[str, Any]) -> Text:
    counters = server["counters"]
    computed, cached = counters.get("prompt_tokens_total"), counters.get("prompt_tokens_cached_total")
    if computed is None or not cached or computed + cached <= 0:
        return Text()
    return Text(f"prompt tokens from cache {100 * cached / (computed + cached):.0f} %", "dim")


def _is_router(document: Document, server: Mapping[str, Any]) -> bool:
    """Whether it has no model itself and other entries share its endpoint."""
    endpoint = (server["address"], server["port"])
    return server["model"] is None and any(
        one["model"] is not None and (one["address"], one["port"]) == endpoint for one in document["servers"]
    )


def _bandwidth(document: Document) -> Text:
    """Bandwidth utilisation of the last request for which it is known."""
    shares = (one["bandwidth_utilization"] for one in document["requests"] if one["server"] == document["focus"])
    known = [share for share in shares if share is not None]
    return Text(f"  last at {100 * known[-1]:.0f} % of the GPU's bandwidth", "dim") if known else Text()


def _pool(server: Mapping[str, Any], cells: int, glyphs: Glyphs) -> Text:
    cache = server["kv_cache"]
    line = Text("KV  ", "bold")
    if not cache or cache["active"] is None:
        return line.append("sleeping: not polled" if server["state"] == "sleeping" else "not known", "dim")
    active, cached, capacity = cache["active"], cache["cached"] or 0, cache["capacity"]
    if capacity:
        used = min(round(cells * active / capacity), cells)
        held = min(round(cells * cached / capacity), cells - used)
        tight = active > 0.9 * capacity
        line.append("[").append(glyphs.decode * used, "red" if tight else "blue")
        line.append(glyphs.prefill * held, "cyan").append(" " * (cells - used - held)).append("] ")
        line.append(
            f"{exact(active)} active {exact(cached)} cached of {exact(capacity)}", "red" if tight else "default"
        )
    else:
        line.append(f"{exact(active)} active, {exact(cached)} cached; the pool's size is not known", "default")
    used_bytes = sum(cache["used_bytes"].values())
    if used_bytes:
        line.append(f"  {size(used_bytes)}", "dim")
    return line


def _slots(server: Mapping[str, Any], width: int, glyphs: Glyphs) -> list[Text]:
    slots = server["slots"]
    if not slots:
        return []
    cells = min(width - 58, 48) if width >= _WIDE_ENOUGH else 0
    work = f"{'tokens':>13}  {'prompt':>6} {'cached':>6} {'out':>5} {'tok/s':>5}"
    bar = f"{'context':{cells + 2}} " if cells else ""
    lines = [Text(f"slot state  {bar}{work}", "bold")]
    # Busy slots first: a server may have more slots than the screen has lines.
    shown = sorted(slots, key=lambda slot: not slot["busy"])[:_SLOTS_SHOWN]
    for slot in sorted(shown, key=lambda slot: slot["id"]):
        held, room = slot["context_tokens"], slot["context_size"]
        busy = slot["busy"]
        line = Text(f"{slot['id']:>4} ", "default").append("busy   " if busy else "idle   ", "green" if busy else "dim")
        used = round(cells * min(held, room) / room) if room and held is not None else 0
        if cells:
            line.append("[").append((glyphs.decode if busy else glyphs.prefill) * used, "blue" if busy else "cyan")
            line.append(" " * (cells - used) + "] ")
        line.append(f"{count(held, glyphs)}/{count(room, glyphs)}".rjust(13))
        if busy:
            line.append(f"  {count(slot['prompt_computed'], glyphs):>6} {count(slot['prompt_cached'], glyphs):>6}")
            line.append(f" {count(slot['decoded'], glyphs):>5} {rate(slot['decode_rate'], glyphs):>5}")
        lines.append(line)
    if len(slots) > _SLOTS_SHOWN:
        lines.append(Text(f"     and {len(slots) - _SLOTS_SHOWN} more slots", "dim"))
    return lines


def _spark(values: Sequence[float | None], cells: int, glyphs: Glyphs) -> str:
    """The last values as a sparkline; an unknown value is a gap."""
    sparks = _SPARKS if glyphs is UNICODE else _ASCII_SPARKS
    last = list(values[-cells:]) if cells else []
    top = max((value for value in last if value is not None), default=0) or 1
    drawn = "".join(
        " " if value is None else sparks[max(1, round((len(sparks) - 1) * value / top))] if value else sparks[1]
        for value in last
    )
    return drawn.rjust(cells)
