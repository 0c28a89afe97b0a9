"""PromQL for the panels: names from the metric table, the dashboards' variables as filter. Nothing of Grafana here.

A figure that cannot be known is no sample: shares divide by what is above zero, so that nothing asked is "No traffic"
and not 0 / 0.
"""

from __future__ import annotations

from llamatel.metrics import SERVER_ATTRIBUTES, Kind, table
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name

ADDRESS, PORT, MODEL = (prometheus_label(name) for name in SERVER_ATTRIBUTES)
SERVER_LABELS = ("job", "instance", ADDRESS, PORT, MODEL)
"""What tells one server (of a router: one model) from another."""
BY_SERVER = ", ".join(SERVER_LABELS)
SERVER_LEGEND = f"{{{{{ADDRESS}}}}}:{{{{{PORT}}}}} {{{{{MODEL}}}}}"

OF_JOB = 'job=~"$job", instance=~"$instance"'
OF_ADDRESS = f'{ADDRESS}=~"$server", {PORT}=~"$port", {MODEL}=~"$model"'
OF_SERVER = f"{OF_JOB}, {OF_ADDRESS}"
_OF_NO_SERVER = ("hw.", "llamatel.collector.", "llamatel.gpu.", "llamatel.records.")

RATE = "$__rate_interval"
"""Over the last moments, for lines."""
RANGE = "$__range"
"""Over the time that the dashboard shows, for single figures."""


def chosen(name: str) -> str:
    """The variables that choose a metric's series.

    Metrics of cards and of llamatel itself are about no server; those of clients come from the clients' own jobs.
    """
    if name.startswith("gen_ai.client."):
        return OF_ADDRESS
    return OF_JOB if name.startswith(_OF_NO_SERVER) else OF_SERVER


def selector(name: str, suffix: str = "", **labels: str) -> str:
    """The series of a metric that the dashboard's variables ask for.

    ``labels`` are further matchers; a value that begins with ``~`` or ``!`` is a regular expression or a negation.
    """
    row = table()[name]
    if (row.kind is Kind.HISTOGRAM) != bool(suffix):
        raise ValueError(f"{name} is a {row.kind.value}: its series end in {suffix or 'a suffix'}")
    matchers = [chosen(name)]
    for label, value in labels.items():
        operator, text = (
            ("=~", value[1:]) if value[0] == "~" else ("!=", value[1:]) if value[0] == "!" else ("=", value)
        )
        matchers.append(f'{label}{operator}"{text}"')
    return f"{prometheus_name(row)}{suffix}{{{', '.join(matchers)}}}"


def total(query: str, by: str = "") -> str:
    """The sum, perhaps by labels."""
    return f"sum by ({by}) ({query})" if by else f"sum({query})"


def rate(name: str, by: str = "", over: str = RATE, **labels: str) -> str:
    """A counter's growth a second."""
    return total(f"rate({selector(name, **labels)}[{over}])", by)


def increase(name: str, by: str = "", over: str = RANGE, **labels: str) -> str:
    """A counter's growth."""
    return total(f"increase({selector(name, **labels)}[{over}])", by)


def quantile(share: float, name: str, by: str = "", over: str = RATE, **labels: str) -> str:
    """A quantile of a histogram; NaN where nothing was recorded."""
    kept = f"le, {by}" if by else "le"
    rates = total(f"rate({selector(name, '_bucket', **labels)}[{over}])", kept)
    return f"histogram_quantile({share:g}, {rates})"


def mean(name: str, by: str = "", over: str = RATE, **labels: str) -> str:
    """The mean of what a histogram recorded."""
    parts, number = (total(f"rate({selector(name, end, **labels)}[{over}])", by) for end in ("_sum", "_count"))
    return share(parts, number)


def count(name: str, by: str = "", over: str = RATE, **labels: str) -> str:
    """How much a histogram recorded a second."""
    return total(f"rate({selector(name, '_count', **labels)}[{over}])", by)


def buckets(name: str, over: str = RATE) -> str:
    """A histogram's buckets, for a heatmap."""
    return total(f"increase({selector(name, '_bucket')}[{over}])", "le")


def within(name: str, objective: str, by: str = "", over: str = RANGE) -> str:
    """The share of what a histogram recorded that is not above an objective, which is one of its bounds.

    Exporters write a bound of one second as ``1`` or as ``1.0``.
    """
    kept = total(f"rate({selector(name, '_bucket', le=f'~{objective}([.]0)?')}[{over}])", by)
    return share(kept, count(name, by, over))


def share(part: str, whole: str) -> str:
    """A quotient; nothing where the whole is zero."""
    return f"{part} / ({whole} > 0)"
