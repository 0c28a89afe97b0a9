"""PromQL for the panels: names from the metric table, the dashboards' variables as matchers.

Denominators are filtered to values above 0, so no traffic yields no sample instead of 0 / 0. Histograms are read in two
forms: classic buckets, and native histograms, which Prometheus receives or converts from classic ones (NHCB).
``without_native`` removes the second form for VictoriaMetrics, which lacks ``histogram_sum`` and ``histogram_count``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamatel.metrics import SERVER_ATTRIBUTES, Kind, table
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name

ADDRESS, PORT, MODEL = (prometheus_label(name) for name in SERVER_ATTRIBUTES)
PATH = "server_path"
"""Set where several servers share a host and differ by their path."""
SERVER_LABELS = ("cluster", "namespace", "pod", "job", "instance", ADDRESS, PORT, PATH, MODEL)
"""Labels that identify a server (or a router's model). Pods that all watch 127.0.0.1 differ in the first five."""
BY_SERVER = ", ".join(SERVER_LABELS)
SERVER_LEGEND = (
    f"{{{{namespace}}}} {{{{pod}}}} {{{{instance}}}} {{{{{ADDRESS}}}}}:{{{{{PORT}}}}}{{{{{PATH}}}}} {{{{{MODEL}}}}}"
)

OF_JOB = 'job=~"$job", cluster=~"$cluster", namespace=~"$namespace", instance=~"$instance"'
OF_ADDRESS = f'{ADDRESS}=~"$server", {PORT}=~"$port", {MODEL}=~"$model"'
OF_SERVER = f"{OF_JOB}, {OF_ADDRESS}"
_OF_NO_SERVER = (
    "hw.",
    "llamatel.build",
    "llamatel.collector.",
    "llamatel.gpu.",
    "llamatel.process.",
    "llamatel.records.",
)

RATE = "$__rate_interval"
"""The range for lines."""
RANGE = "$__range"
"""The range for single figures: the time that the dashboard shows."""


def chosen(name: str) -> str:
    """Matchers of the variables that select a metric's series.

    Metrics of cards and of llamatel itself are about no server; those of clients come from the clients' own jobs.
    """
    if name.startswith("gen_ai.client."):
        return OF_ADDRESS
    return OF_JOB if name.startswith(_OF_NO_SERVER) else OF_SERVER


def selector(name: str, suffix: str = "", **labels: str) -> str:
    """The series of a metric that the dashboard's variables select.

    ``labels`` are further matchers; a value that begins with ``~`` or ``!`` is a regular expression or a negation.
    """
    row = table()[name]
    if (row.kind is Kind.HISTOGRAM) != bool(suffix):
        raise ValueError(f"{name} is a {row.kind.value}: its series end in {suffix or 'a suffix'}")
    return f"{prometheus_name(row)}{suffix}{{{_matchers(name, labels)}}}"


def _native(name: str, **labels: str) -> str:
    """A histogram's series in native form."""
    return f"{prometheus_name(name)}{{{_matchers(name, labels)}}}"


def _matchers(name: str, labels: dict[str, str]) -> str:
    found = [chosen(name)]
    for label, value in labels.items():
        operator, text = (
            ("=~", value[1:]) if value[0] == "~" else ("!=", value[1:]) if value[0] == "!" else ("=", value)
        )
        found.append(f'{label}{operator}"{text}"')
    return ", ".join(found)


def total(query: str, by: str = "") -> str:
    """The sum, perhaps by labels."""
    return f"sum by ({by}) ({query})" if by else f"sum({query})"


def rate(name: str, by: str = "", **labels: str) -> str:
    """A counter's rate per second."""
    return total(f"rate({selector(name, **labels)}[{RATE}])", by)


def increase(name: str, by: str = "", over: str = RANGE, **labels: str) -> str:
    """A counter's increase."""
    return total(f"increase({selector(name, **labels)}[{over}])", by)


def quantile(share: float, name: str, by: str = "", over: str = RATE, **labels: str) -> str:
    """A quantile of a histogram; NaN where nothing was recorded."""
    kept = f"le, {by}" if by else "le"
    classic = total(f"rate({selector(name, '_bucket', **labels)}[{over}])", kept)
    native = total(f"rate({_native(name, **labels)}[{over}])", by)
    return f"(histogram_quantile({share:g}, {classic}) or histogram_quantile({share:g}, {native}))"


def mean(name: str, by: str = "", **labels: str) -> str:
    """The mean of a histogram's values."""
    parts, number = (total(f"rate({selector(name, end, **labels)}[{RATE}])", by) for end in ("_sum", "_count"))
    rates = f"rate({_native(name, **labels)}[{RATE}])"
    sums, counts = (total(f"histogram_{part}({rates})", by) for part in ("sum", "count"))
    return f"({share(parts, number)} or ({share(sums, counts)}))"


def count(name: str, by: str = "", **labels: str) -> str:
    """Values per second of a histogram."""
    classic = total(f"rate({selector(name, '_count', **labels)}[{RATE}])", by)
    native = total(f"histogram_count(rate({_native(name, **labels)}[{RATE}]))", by)
    return f"({classic} or ({native}))"


def buckets(name: str) -> str:
    """A histogram's buckets, or the native histogram, for a heatmap."""
    classic = total(f"increase({selector(name, '_bucket')}[{RATE}])", "le")
    native = total(f"increase({_native(name)}[{RATE}])")
    return f"{classic} or ({native} unless on () {classic})"


def within(name: str, objective: str, by: str = "", over: str = RANGE) -> str:
    """The share of a histogram's values within an objective, which is one of its bounds.

    Exporters write a bound of one second as ``1`` or as ``1.0``.
    """
    kept = total(f"rate({selector(name, '_bucket', le=f'~{objective}([.]0)?')}[{over}])", by)
    every = total(f"rate({selector(name, '_count')}[{over}])", by)
    native = f"histogram_fraction(0, {objective}, {total(f'rate({_native(name)}[{over}])', by)}) >= 0"
    return f"({share(kept, every)} or {native})"


def share(part: str, whole: str) -> str:
    """A quotient; nothing where the whole is zero."""
    return f"{part} / ({whole} > 0)"


def hit_share(by: str = "", over: str = RANGE) -> str:
    """Share of prompt tokens that came from the KV cache.

    Limited to 1, as Prometheus extrapolates the increase of new counters separately.
    """
    hits, lookups = (increase(f"llamacpp.prompt_cache.{name}", by, over) for name in ("hits", "lookups"))
    return f"clamp_max({share(hits, lookups)}, 1)"


def logged(figure: str) -> str:
    """A figure about requests, -1 without requests, and empty without a request log."""
    return f"{figure} or -group({selector('llamatel.log.lines')})"


def servers_down() -> str:
    """Servers that do not respond and are not loading, and llamatels that Prometheus cannot scrape."""
    up = selector("llamacpp.server.up")
    starting = selector("llamacpp.server.state", state="starting")
    known = f"group by (job, instance) (last_over_time({selector('llamatel.collector.success')}[1d]))"
    servers = f"{up} == bool 0 unless ignoring (state) {starting}"
    return f"sum(({servers}) or (up{{{OF_JOB}}} == bool 0 and on (job, instance) {known}))"


def firing(name: str = "ALERTS") -> str:
    """Alerts that fire, as Prometheus and vmalert record them."""
    return f'{name}{{alertname=~"Llama(cpp|tel).+", alertstate="firing", {OF_JOB}}}'


def with_labels(expr: str, labels: Sequence[str]) -> str:
    """A query whose aggregations by server keep further labels of the target."""
    target = ", ".join(SERVER_LABELS[:5])
    return re.sub(rf"(\bby \([^()]*\b{target})\b", lambda found: ", ".join((found[1], *labels)), expr)


def without_native(expr: str) -> str:
    """A query without those parts that VictoriaMetrics rejects: `` or (…)`` with its unknown functions."""
    start = 0
    while (start := expr.find(" or (", start)) >= 0:
        depth, end = 1, start + len(" or (")
        while depth:
            depth += {"(": 1, ")": -1}.get(expr[end], 0)
            end += 1
        if re.search(r"histogram_(sum|count)\(", expr[start:end]):
            expr = expr[:start] + expr[end:]
        else:
            start += 1
    return expr
