"""The alert rules. Every alert has an entry in docs/alerts.md and a case in tests/rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamatel.ui import alarm_conditions as conditions
from llamatel_dashboards.rule_options import LOST_PREFILL, SERVER, RuleOptions

FAST_BURN = 14.4
"""Of the error budget: 2 % of a month's in an hour (Google's SRE workbook, chapter 5)."""

# Prometheus' templates: an absent label is the empty string. The pod's name comes first, as people know it.
INSTANCE = "{{ with $labels.namespace }}{{ . }}/{{ end }}{{ with $labels.pod }}{{ . }} {{ end }}{{ $labels.instance }}"
_SERVER = (
    "{{ $labels.server_address }}{{ with $labels.server_port }}:{{ . }}{{ end }}{{ $labels.server_path }}"
    "{{ with $labels.gen_ai_request_model }} ({{ . }}){{ end }}"
)
WHERE = f"{_SERVER} on {INSTANCE}"
"""The server, its model, and the llamatel that reports it."""

_FAILED = "error|context_full"
_QUIET = 3
"""Failures in an hour without a success, from which a quiet server is reported."""
_BY_TYPE = "The panel Errors by type of the dashboard Requests shows error.type; the server's log has the messages."


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule."""

    name: str
    expr: str
    severity: str
    """``critical``: requests fail or soon will. ``warning``: needs attention today. ``info``: figures need care."""
    summary: str
    """What is wrong, and where; Prometheus fills in ``{{ … }}``."""
    description: str
    """What would help."""
    wait: str = "0s"
    keep: str = "0s"
    """How long it continues to fire after its condition has passed."""

    def rule(self, runbook_url: str | None) -> dict[str, Any]:
        """As in a rule file. ``runbook_url``: where docs/alerts.md is published, if it is."""
        rule: dict[str, Any] = {"alert": self.name, "expr": self.expr}
        if self.wait != "0s":
            rule["for"] = self.wait
        if self.keep != "0s":
            rule["keep_firing_for"] = self.keep
        rule["labels"] = {"severity": self.severity}
        rule["annotations"] = {"summary": self.summary, "description": self.description}
        if runbook_url is not None:
            rule["annotations"]["runbook_url"] = f"{runbook_url}#{self.name.lower()}"
        return rule


def alerts(options: RuleOptions) -> Iterator[Alert]:
    """All alerts, in the order of docs/alerts.md."""
    yield from _availability(options)
    yield from _failures(options)
    yield from _capacity()
    yield from _burn_rates(options)
    yield _lost_prefixes(options)
    yield from _model()
    yield from _telemetry(options)


def _availability(options: RuleOptions) -> Iterator[Alert]:
    starting = 'llamacpp_server_state{state="starting"}'
    yield Alert(
        "LlamacppServerDown",
        # A large model takes minutes to load; one that crashes while it loads makes a restart loop.
        f"llamacpp_server_up == 0 unless ignoring (state) {starting}",
        "critical",
        f"llama.cpp server {WHERE} does not answer.",
        "See the end of its log. llamatel serve --restart on-failure restarts a server that crashes.",
        wait="1m",
    )
    yield Alert(
        "LlamatelDown",
        options.silent_targets(),
        "critical",
        f"Prometheus cannot scrape llamatel on {INSTANCE} (job {{{{ $labels.job }}}}).",
        "llamatel serve exits together with a server that crashed or used up its restarts: its last lines have the "
        "reason. A llamatel that was stopped on purpose has to leave service discovery, too.",
        wait="1m",
    )
    if options.expected:
        yield Alert(
            "LlamatelAbsent",
            # One that sends its metrics through a Collector has no `up` of its own.
            " or ".join(f"absent(up{{{each}}}) and absent(llamatel_build_info{{{each}}})" for each in options.expected),
            "critical",
            "An expected target is not in service discovery: "
            "{{ range $name, $value := $labels }}{{ $name }}={{ $value }} {{ end }}",
            "Start it, or export the rules without the --expect that names it.",
            wait="1m",
        )
    yield Alert(
        "LlamacppServerUnresponsive",
        "llamacpp_server_stale == 1",
        "critical",
        f"llama.cpp server {WHERE} answers health checks only, for {conditions.UNRESPONSIVE_FOR_S / 60:.0f} minutes.",
        "A long prefill can keep it busy for a while. If its log shows no progress it hangs: restart it.",
        wait=f"{conditions.UNRESPONSIVE_FOR_S / 60:.0f}m",
    )
    yield Alert(
        "LlamacppServerStalled",
        "llamacpp_server_stalled == 1",
        "critical",
        f"llama.cpp server {WHERE} has work and makes no progress.",
        "See the end of its log and restart it. llamatel serve --restart on-stall does that.",
    )
    yield Alert(
        "LlamacppServerStarting",
        f"{starting} == 1",
        "warning",
        f"llama.cpp server {WHERE} has been loading its model for {conditions.STARTING_FOR_S / 60:.0f} minutes.",
        "Its log shows what it waits for: a download, a slow disk.",
        wait=f"{conditions.STARTING_FOR_S / 60:.0f}m",
    )
    minutes = f"{conditions.RESTARTS_WITHIN_S / 60:.0f}"
    yield Alert(
        "LlamacppRestartLoop",
        # Where a supervisor restarts both, the counter of restarts starts at 0 each time.
        f"increase(llamacpp_server_restarts_total[{minutes}m]) > {conditions.RESTARTS - 1}.5 "
        f"or changes(llamacpp_server_start_time_seconds[{minutes}m]) > {conditions.RESTARTS - 1}.5",
        "critical",
        f'llama.cpp server {WHERE} was restarted {{{{ $value | printf "%.0f" }}}} times in {minutes} minutes.',
        "See the end of its log before each restart.",
    )


def _failures(options: RuleOptions) -> Iterator[Alert]:
    least = 5
    """Failures of a quiet server count once there were five requests."""
    for window, limit, severity in (
        ("5m", conditions.MOST_FAIL, "critical"),
        ("10m", options.objectives.error_rate, "warning"),
    ):
        every = options.requests(window)
        failed = options.requests(window, _FAILED)
        yield Alert(
            "LlamacppMostRequestsFail" if severity == "critical" else "LlamacppRequestsFailing",
            f"{failed} / ({every} >= {least}) > {limit:g}",
            severity,
            f"{{{{ $value | humanizePercentage }}}} of the requests of the last {window} failed on llama.cpp server "
            f"{WHERE}.",
            _BY_TYPE,
            wait="1m" if severity == "critical" else "2m",
        )
    yield Alert(
        "LlamacppNoRequestSucceeds",
        f"{options.requests('1h', _FAILED)} > {_QUIET - 0.5} unless {options.requests('1h', 'ok|cancelled')} > 0",
        "warning",
        f'All requests of the last hour ({{{{ $value | printf "%.0f" }}}}) failed on llama.cpp server {WHERE}.',
        _BY_TYPE,
        wait="2m",
    )
    full = 'llamacpp_requests_total{outcome="context_full"}'
    yield Alert(
        "LlamacppContextFull",
        # A series that appears with its first failure has no increase yet. After a gap in the data it is not new.
        f"increase({full}[5m]) > 0 or ({full} > 0 unless last_over_time({full}[6h] offset 5m))",
        "critical",
        f"Requests failed on llama.cpp server {WHERE} because the KV pool was full.",
        "Raise -c, lower -np, or split the pool with --no-kv-unified.",
    )


def _capacity() -> Iterator[Alert]:
    yield Alert(
        "LlamacppKvHeadroomLow",
        f'llamacpp_kv_cache_usage{{state="active"}} > {1 - conditions.HEADROOM:g}',
        "critical",
        f"Running requests hold {{{{ $value | humanizePercentage }}}} of the KV pool of llama.cpp server {WHERE}.",
        "When it is full they fail, in a shared pool all at once. Raise -c, lower -np, or split the pool with "
        "--no-kv-unified.",
        keep="1m",
    )
    yield Alert(
        "LlamacppKvExhaustionPredicted",
        f"predict_linear(llamacpp_kv_cache_headroom[5m], {conditions.EXHAUSTED_WITHIN_S:.0f}) < 0"
        ' and ignoring (state) llamacpp_kv_cache_usage{state="active"} > 0.5',
        "warning",
        f"The KV pool of llama.cpp server {WHERE} will be full within {conditions.EXHAUSTED_WITHIN_S / 60:.0f} minutes "
        "at the current rate.",
        "Raise -c, or lower -np or the requests' lengths.",
        wait="30s",
    )
    yield Alert(
        "LlamacppRequestsDeferred",
        "min_over_time(llamacpp_requests_deferred[2m]) > 0 and deriv(llamacpp_requests_deferred[2m]) >= 0",
        "warning",
        f"At least {{{{ $value }}}} requests have waited for a slot of llama.cpp server {WHERE} for two minutes, and "
        "the queue does not shrink.",
        "Raise -np (and -c with it), or add a server.",
    )


def _burn_rates(options: RuleOptions) -> Iterator[Alert]:
    """Objectives missed so often that the error budget will not last (multi-window, multi-burn-rate)."""
    objectives = options.objectives
    for name, label, limit_s, remedy in (
        (
            "ttft",
            "time to first token",
            objectives.ttft_s,
            "If requests are deferred, raise -np. If prefill is long, shorten prompts or let them share a prefix.",
        ),
        (
            "tpot",
            "time per output token",
            objectives.tpot_s,
            "Lower -np, offload more layers (-ngl), or use a smaller quantisation.",
        ),
    ):
        for speed, factor, short, long, wait in (
            ("Fast", FAST_BURN, "5m", "1h", "2m"),
            ("Slow", conditions.BURN_RATE, "30m", "6h", "15m"),
        ):
            missed = f"llamacpp:{name}_missed:ratio_rate"
            limit = f"{conditions.burn_limit(factor, objectives.error_budget):g}"
            yield Alert(
                f"Llamacpp{name.capitalize()}Objective{speed}Burn",
                f"{missed}{short} > {limit} and {missed}{long} > {limit} "
                f"and llamacpp:requests:increase{long} >= {objectives.min_requests} "
                f"and {missed}{long} * llamacpp:requests:increase{long} > {conditions.LEAST_MISSED - 1}.5",
                "critical" if speed == "Fast" else "warning",
                f"{{{{ $value | humanizePercentage }}}} of the requests of the last {short} missed the {label} "
                f"objective of {limit_s:g} s on llama.cpp server {WHERE} ({objectives.error_budget * 100:g} % may).",
                remedy,
                wait=wait,
            )


def _lost_prefixes(options: RuleOptions) -> Alert:
    return Alert(
        "LlamacppPrefixReuseLost",
        f"{LOST_PREFILL} > {options.objectives.lost_prefill_s:g}",
        "warning",
        f'Prefix reuse is being lost on llama.cpp server {WHERE}: up to {{{{ $value | printf "%.1f" }}}} s of prefill '
        "per minute, cause {{ $labels.cause }}.",
        "Tokens that were in the KV cache are computed again. llamatel doctor shows what the remedy by cause would "
        "save and cost.",
        wait="5m",
    )


def _model() -> Iterator[Alert]:
    yield Alert(
        "LlamacppKvSizeDisagrees",
        "abs(llamacpp_kv_cache_plan_error_bytes) > 0",
        "warning",
        f"The KV cache of llama.cpp server {WHERE} differs from the plan by {{{{ $value | humanize1024 }}}}B.",
        "Figures in bytes are wrong for this model: please report its name, flags and build.",
        wait="1m",
    )
    yield Alert(
        "LlamacppOnCpu",
        "llamacpp_gpu_fallback == 1",
        "warning",
        f"llama.cpp server {WHERE} was to run on the GPU and decodes on the CPU.",
        "Does this build of llama.cpp support the GPU, and is there memory for the model (llamatel plan)?",
        wait="1m",
    )
    yield Alert(
        "LlamacppModelFailed",
        "increase(llamacpp_model_failures_total[10m]) > 0",
        "warning",
        f"A model of the router did not load, or its process crashed: {WHERE}.",
        "The router's log has the reason.",
    )


def _telemetry(options: RuleOptions) -> Iterator[Alert]:
    yield Alert(
        "LlamatelTelemetryDropped",
        "increase(llamatel_records_dropped_total[5m]) > 0",
        "warning",
        f"llamatel on {INSTANCE} loses telemetry ({{{{ $labels.reason }}}}).",
        "Is the OTLP endpoint up and fast enough? Inference is not affected.",
    )
    yield Alert(
        "LlamatelRequestsLost",
        "increase(llamatel_requests_lost_total[10m]) > 0",
        "warning",
        f'Requests of llama.cpp server {WHERE} whose end was not seen: {{{{ $value | printf "%.0f" }}}}.',
        "Does the log arrive complete and in order? A router that swaps models needs its log: without it, totals of "
        "tokens lack what a model counted after its last poll.",
    )
    yield Alert(
        "LlamatelLogLost",
        "increase(llamatel_log_lost_bytes_total[10m]) > 0",
        "warning",
        f'{{{{ $value | printf "%.0f" }}}} bytes of the log of llama.cpp server {WHERE} were removed before they were '
        "read.",
        "Rotate by renaming instead of truncating. Requests may be missing from traces and histograms.",
    )
    yield Alert(
        "LlamatelLogContradictions",
        "increase(llamatel_log_contradictions_total[10m]) > 0",
        "warning",
        f"The log of llama.cpp server {WHERE} contradicts llama.cpp's own figures ({{{{ $labels.kind }}}}).",
        "A client may have written into the log. Take rates from llamacpp_tokens_total; see docs/security.md.",
    )
    yield Alert(
        "LlamatelLogNotUnderstood",
        "llamatel_log_understood == 0",
        "warning",
        f"llama.cpp server {WHERE} generates tokens for requests that its log does not show.",
        "Traces and histograms lack them. Was it started with --log-disable, or with -lv below 3?",
        wait="1m",
    )
    yield Alert(
        "LlamatelLogSilent",
        "llamatel_log_silent_duration_seconds > 60",
        "warning",
        f"The log of llama.cpp server {WHERE} has had no line for {{{{ $value | humanizeDuration }}}} while it "
        "generated tokens.",
        "Was the log rotated away, or has what passes it on stopped? Requests are missing from traces and histograms.",
        wait="1m",
    )
    yield Alert(
        "LlamatelCollectorFailing",
        "llamatel_collector_success == 0",
        "warning",
        f"Collector {{{{ $labels.collector }}}} of llamatel on {INSTANCE} fails.",
        "llamatel's log has the reason. --no-collector turns one off.",
        wait="5m",
    )
    remote = 'llamacpp_server_up{server_address!~"127[.].*|localhost|::1|0[.]0[.]0[.]0|/.*|"}'
    site = ", ".join((*options.site, *SERVER[2:]))
    yield Alert(
        "LlamatelServerWatchedTwice",
        f"count by ({site}) (count by (job, instance, {site}) ({remote})) > 1",
        "info",
        f"{{{{ $value }}}} llamatels watch the same llama.cpp server: {_SERVER}.",
        "Sums over all instances count it that often: choose one under `llamatel` at the top of the dashboards.",
        wait="5m",
    )
