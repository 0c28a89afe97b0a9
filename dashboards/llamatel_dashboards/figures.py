"""Queries, thresholds and the table of servers that several dashboards share."""

from __future__ import annotations

from collections.abc import Mapping

from llamatel.ui import alarm_conditions
from llamatel_dashboards import queries as q
from llamatel_dashboards.panels import GREEN, RED, YELLOW, Column, Panel, Query, at, rows

TTFT = "gen_ai.server.time_to_first_token"
TPOT = "gen_ai.server.time_per_output_token"
DURATION = "gen_ai.server.request.duration"
NAMES = {q.ADDRESS: "server", q.PORT: "port", q.MODEL: "model"}
PAGE = ("llamatel's page, where instance is its address", "http://${__value.text}/")
DETAILS = (
    "Requests of this server",
    (
        "/d/llamatel-requests?${__url_time_range}&var-datasource=${datasource}&var-instance=${__data.fields.instance}"
        "&var-server=${__data.fields.server}&var-port=${__data.fields.port}"
    ),
)
WAITING = at((None, "transparent"), (1, YELLOW), (8, RED))
HEADROOM = at((None, RED), (alarm_conditions.HEADROOM, YELLOW), (0.3, "transparent"))
FAILED = at((None, "transparent"), (0.001, YELLOW), (0.01, RED))


def quantiles(name: str, *, exemplars: bool = True) -> list[Query]:
    """p50, p95 and p99 of a histogram, over time."""
    return [Query(q.quantile(share, name), f"p{share * 100:.0f}", exemplars) for share in (0.5, 0.95, 0.99)]


def headroom_share(by: str = "") -> str:
    """Share of the KV pool that requests can still use; of the fullest server, or by server."""
    free, capacity = (q.selector(f"llamacpp.kv_cache.{name}") for name in ("headroom", "capacity"))
    return f"min by ({by}) ({free} / {capacity})" if by else f"min({free} / {capacity})"


def speed(tokens: str, phase: str, by: str = "") -> str:
    """Tokens per second of one request in a phase, from llama.cpp's own counters."""
    return q.share(q.rate("llamacpp.tokens", by, type=tokens), q.rate("llamacpp.processing_time", by, phase=phase))


def servers_table(columns: Mapping[str, str | Column], meaning: str, action: str, height: int) -> Panel:
    """A row for each server and model, those that are down first; instances link to details."""
    answers, state = q.selector("llamacpp.server.up"), q.selector("llamacpp.model.state")
    failed = q.selector("llamacpp.model.state", state="failed")
    up = Column(
        " or ".join(
            f"{value}max by ({q.BY_SERVER}) ({series})"
            for value, series in (("", answers), ("0 * ", failed), ("1 + ", state))
        ),
        texts={"1": ("up", GREEN), "0": ("DOWN", RED), "2": ("in a router", "transparent")},
    )
    return rows(
        "Servers",
        {"up": up, **columns},
        meaning,
        action,
        names=NAMES,
        hidden=("job",),
        first=("cluster", "namespace", "pod", "instance", "server", "port", "model", "up"),
        links={"instance": PAGE, "server": DETAILS},
        sort=("up", False),
        widths={"port": 70, "up": 90},
        size=(24, height),
    )
