"""What a user chooses about the rules, and the PromQL that several rules share.

Aggregations drop only the labels that a metric itself adds (``without``), so that labels of targets (namespace, pod,
cluster, env, team, ...) are on every recorded series and every alert, and servers of the same name in two namespaces
are never summed. ``keep_labels`` restricts recorded series to the server's own labels, the usual ones and those named.

Latency is read from classic histograms and, where those are converted at scrape or pushed as native ones, from native
histograms. Only functions that VictoriaMetrics has, too: it rejects a query with an unknown function as a whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from llamatel.errors import UsageError
from llamatel.metrics import SERVER_ATTRIBUTES, table
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name
from llamatel.ui.objectives import Objectives

SERVER = ("job", "instance", "server_path", *map(prometheus_label, SERVER_ATTRIBUTES))
"""Labels that identify a server, or one model of a router."""
SITE = ("cluster", "env", "namespace")
"""The usual labels for where a target is."""
KNOWN = "llamatel:targets:known"
LOST_PREFILL = "llamacpp:lost_prefill:seconds_per_minute5m"
_LATENCIES = {
    "ttft": "gen_ai.server.time_to_first_token",
    "tpot": "gen_ai.server.time_per_output_token",
}
"""Histograms of the objectives for latency."""
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
_SELECTOR = re.compile(
    r'[a-zA-Z_]\w*(?:=~|!=|!~|=)"(?:[^"\\\n]|\\["\\nt])*"(?:, ?[a-zA-Z_]\w*(?:=~|!=|!~|=)"(?:[^"\\\n]|\\["\\nt])*")*'
)


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """Choices of ``llamatel dashboards export`` that rules depend on."""

    objectives: Objectives = field(default_factory=Objectives)
    jobs: str = "llamatel.*"
    """Regular expression of the Prometheus jobs that scrape llamatel; targets of other jobs are known from their past
    samples."""
    keep_labels: tuple[str, ...] | None = None
    """None keeps every label of a target."""
    expected: tuple[str, ...] = ()
    """Label matchers of targets that have to exist: ``instance="gpu-1:9464"``."""
    runbook_url: str | None = None
    """Where docs/alerts.md is published; None leaves ``runbook_url`` out of the annotations."""

    def at_bucket_bounds(self) -> RuleOptions:
        """Latency objectives at the nearest bounds of their histograms, as only those can be counted.

        One beyond all bounds stays, for ``check`` to refuse it.
        """

        def nearest(name: str, value: float) -> float:
            bounds = sorted(table()[_LATENCIES[name]].buckets)
            return min(bounds, key=lambda bound: abs(bound - value)) if bounds[0] <= value <= bounds[-1] else value

        ttft, tpot = nearest("ttft", self.objectives.ttft_s), nearest("tpot", self.objectives.tpot_s)
        return replace(self, objectives=replace(self.objectives, ttft_s=ttft, tpot_s=tpot))

    def check(self) -> None:
        """Raises UsageError for a choice that would make a rule that is invalid or never fires."""
        for name, key in _LATENCIES.items():
            bounds, value = table()[key].buckets, getattr(self.objectives, f"{name}_s")
            if value not in bounds:
                near = ", ".join(f"{bound:g}" for bound in sorted(bounds, key=lambda bound: abs(bound - value))[:4])
                raise UsageError(f"--{name} {value:g}s is not a bucket bound of {key}; nearest, in seconds: {near}")
        for label in self.keep_labels or ():
            if not _LABEL.fullmatch(label):
                raise UsageError(f"--keep-labels: {label!r} is not a label name")
        for selector in self.expected:
            if not _SELECTOR.fullmatch(selector):
                raise UsageError(f'--expect: {selector!r} is not a list of matchers such as instance="gpu-1:9464"')
        url = self.runbook_url
        if url is not None and not (url.startswith(("https://", "http://")) and url.isprintable()):
            raise UsageError("--runbook-url has to be an absolute URL, such as https://wiki.example/llamatel-alerts")
        if '"' in self.jobs or not self.jobs.isprintable():
            raise UsageError("--job is a regular expression without quotation marks")
        try:
            re.compile(self.jobs)
        except re.error as error:
            raise UsageError(f"--job is not a regular expression: {error}") from error

    def per_server(self, expr: str, *own: str) -> str:
        """Sum over the labels that the metric adds (``own``), for each server."""
        if self.keep_labels is None:
            return f"sum without ({', '.join(own)}) ({expr})"
        return f"sum by ({', '.join((*SERVER, *self.site))}) ({expr})"

    def missed(self, metric: str, objective_s: float, window: str) -> str:
        """The share of requests above an objective; no sample where there was no request."""
        row = table()[metric]
        name, own = prometheus_name(row), [prometheus_label(attribute) for attribute in row.attributes]
        kept = self.per_server(f"rate({name}_bucket{{le={bound_matcher(objective_s)}}}[{window}])", "le", *own)
        all_of = self.per_server(f"rate({name}_count[{window}])", *own)
        native = f"histogram_fraction(0, {objective_s:g}, {self.per_server(f'rate({name}[{window}])', *own)})"
        # A native histogram without requests has the fraction NaN, which >= filters out.
        return f"1 - ({kept} / ({all_of} > 0) or {native} >= 0)"

    def requests(self, window: str, outcome: str = "") -> str:
        """Finished requests in a window, by the counter, which is the same whatever histograms are."""
        matcher = f'{{outcome=~"{outcome}"}}' if outcome else ""
        return self.per_server(f"increase(llamacpp_requests_total{matcher}[{window}])", "outcome")

    def lost_prefill(self) -> str:
        """Seconds of prefill a minute for tokens that had been in the cache, by cause, over five minutes."""
        rate = "60 * rate(llamacpp_prompt_cache_recompute_duration_seconds_total[5m])"
        if self.keep_labels is None:
            return rate
        return f"sum by ({', '.join((*SERVER, 'cause', *self.site))}) ({rate})"

    @property
    def site(self) -> tuple[str, ...]:
        """Labels that distinguish two servers, or two targets, of one name, where there are any."""
        return tuple(dict.fromkeys((*SITE, *(label for label in self.keep_labels or () if label not in SERVER))))

    def silent_targets(self) -> str:
        """``up`` of targets that do not answer: of llamatel's jobs, expected ones, and others that had its metrics."""
        named = " or ".join(f"up{{{each}}} == 0" for each in (f'job=~"{_escaped(self.jobs)}"', *self.expected))
        return f"{named} or up == 0 and on ({', '.join(self._target)}) {KNOWN}"

    def known_targets(self) -> str:
        """Targets with llamatel's metrics, and those that had them and are still discovered: it refers to itself."""
        by = ", ".join(self._target)
        seen = f"group by ({by}) (last_over_time({KNOWN}[1h])) and on ({by}) up == 0"
        return f"group by ({by}) (llamatel_collector_success) or {seen}"

    @property
    def _target(self) -> tuple[str, ...]:
        return (*self.site, "job", "instance")


def bound_matcher(bound: float) -> str:
    """Matches ``le`` of a bucket: exporters write a bound of one second as ``1`` or as ``1.0``."""
    text = f"{bound:g}"
    return f'~"{_escaped(re.escape(text))}([.]0)?"' if "." not in text else f'"{text}"'


def _escaped(pattern: str) -> str:
    """A regular expression within a string of PromQL."""
    return pattern.replace("\\", "\\\\")
