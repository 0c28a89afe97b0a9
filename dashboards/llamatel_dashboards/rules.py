"""Recording and alert rules for Prometheus, made here and kept as YAML beside it.

``python -m llamatel_dashboards.rules`` writes ``rules/*.yml`` anew; a test compares. Thresholds are those of
``llamatel.ui.alarms``, which says the same on the terminal. Every alert has an entry in docs/alerts.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamatel.ui import alarms
from llamatel_dashboards.queries import BY_SERVER

FOLDER = Path(__file__).parent / "rules"
RUNBOOK = "docs/alerts.md"

_WINDOWS = ("5m", "30m", "1h", "6h")
_OBJECTIVES = {
    "ttft": ("gen_ai_server_time_to_first_token_seconds", alarms.TIME_TO_FIRST_TOKEN_S),
    "tpot": ("gen_ai_server_time_per_output_token_seconds", alarms.TIME_PER_OUTPUT_TOKEN_S),
}
_FAST_BURN = 14.4
"""Of the error budget: 2 % of a month's in an hour (Google's SRE workbook, chapter 5)."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule."""

    name: str
    expr: str
    severity: str
    """``critical``: requests fail or soon will. ``warning``: look today."""
    summary: str
    """One line, with what would help; Prometheus fills in ``{{ … }}``."""
    wait: str = "0s"
    keep: str = "0s"
    """How long it goes on firing after its condition has passed."""

    def rule(self) -> dict[str, Any]:
        """As it stands in a rule file."""
        rule: dict[str, Any] = {"alert": self.name, "expr": self.expr}
        if self.wait != "0s":
            rule["for"] = self.wait
        if self.keep != "0s":
            rule["keep_firing_for"] = self.keep
        rule["labels"] = {"severity": self.severity}
        rule["annotations"] = {"summary": self.summary, "runbook": f"{RUNBOOK}#{self.name.lower()}"}
        return rule


def recording() -> Iterator[dict[str, Any]]:
    """Rules that others build on: how many requests miss an objective, over several windows."""
    for name, (metric, objective) in _OBJECTIVES.items():
        for window in _WINDOWS:
            kept = f'sum by ({BY_SERVER}) (rate({metric}_bucket{{le="{objective}"}}[{window}]))'
            every = f"sum by ({BY_SERVER}) (rate({metric}_count[{window}]))"
            # Where nothing was asked there is no share: 0 / 0 is no miss.
            yield {"record": f"llamacpp:{name}_missed:ratio_rate{window}", "expr": f"1 - {kept} / ({every} > 0)"}


def alerts() -> Iterator[Alert]:
    """All alerts."""
    where = "{{ $labels.server_address }}:{{ $labels.server_port }}"
    yield Alert(
        "LlamacppServerDown",
        # A large model takes minutes to load; one that dies while it loads makes a restart loop.
        f'llamacpp_server_up == 0 unless on ({BY_SERVER}) llamacpp_server_state{{state="starting"}}',
        "critical",
        f"{where} does not answer. Its log says why; llamatel serve --restart on-failure restarts it.",
        wait="1m",
    )
    yield Alert(
        "LlamacppServerStarting",
        'llamacpp_server_state{state="starting"} == 1',
        "warning",
        f"{where} has been loading its model for {alarms.STARTING_FOR_S / 60:.0f} minutes. Its log says what it does.",
        wait=f"{alarms.STARTING_FOR_S / 60:.0f}m",
    )
    yield Alert(
        "LlamacppRestartLoop",
        f"increase(llamacpp_server_restarts_total[{alarms.RESTARTS_WITHIN_S / 60:.0f}m]) > {alarms.RESTARTS - 1}.5",
        "critical",
        f'{where} was restarted {{{{ $value | printf "%.0f" }}}} times in '
        f"{alarms.RESTARTS_WITHIN_S / 60:.0f} minutes. Its log says why.",
    )
    yield Alert(
        "LlamacppKvHeadroomLow",
        f'llamacpp_kv_cache_usage{{state="active"}} > {1 - alarms.HEADROOM:g}',
        "critical",
        f"{where}: running requests take {{{{ $value | humanizePercentage }}}} of the KV pool. When it is full they "
        "fail, in a shared pool all at once. Raise -c, lower -np, or split the pool with --no-kv-unified.",
        keep="1m",
    )
    yield Alert(
        "LlamacppKvExhaustionPredicted",
        f"predict_linear(llamacpp_kv_cache_headroom[5m], {alarms.EXHAUSTED_WITHIN_S:.0f}) < 0"
        f" and on ({BY_SERVER})"
        ' llamacpp_kv_cache_usage{state="active"} > 0.5',
        "warning",
        f"{where}: the KV pool will be full within {alarms.EXHAUSTED_WITHIN_S / 60:.0f} minutes at the rate of the "
        "last five. Raise -c, or lower -np or the requests' lengths.",
        wait="30s",
    )
    full = 'llamacpp_requests_total{outcome="context_full"}'
    yield Alert(
        "LlamacppContextFull",
        # A series that has just begun has no increase yet.
        f"increase({full}[5m]) > 0 or ({full} > 0 unless {full} offset 5m)",
        "critical",
        f"{where}: requests failed as the KV pool was full. Raise -c, lower -np, or split the pool with "
        "--no-kv-unified.",
    )
    yield Alert(
        "LlamacppRequestsDeferred",
        "min_over_time(llamacpp_requests_deferred[2m]) > 0 and deriv(llamacpp_requests_deferred[2m]) >= 0",
        "warning",
        f"{where}: {{{{ $value }}}} requests or more have waited for a slot for two minutes, and they do not get "
        "fewer. Raise -np (and -c with it), or add a server.",
    )
    yield from _burning(where)
    planned, reported = (
        f'sum by ({BY_SERVER}) (llamacpp_kv_cache_size_bytes{{source="{source}"}})'
        for source in ("planned", "reported")
    )
    yield Alert(
        "LlamacppKvSizeDisagrees",
        f"abs({planned} - {reported}) > {alarms.DISAGREEMENT:g} * {reported} + {alarms.RESOLUTION_BYTES}",
        "warning",
        f"{where}: llama.cpp's KV cache is {{{{ $value | humanize1024 }}}}B off from what was planned.",
        wait="1m",
    )
    yield Alert(
        "LlamacppOnCpu",
        "llamacpp_gpu_fallback == 1",
        "warning",
        f"{where}: the model is not on the GPU as it was asked to be, and decodes on the CPU. Is this build of "
        "llama.cpp made for the GPU, and is there memory for it (llamatel plan)?",
        wait="1m",
    )
    yield Alert(
        "LlamacppModelFailed",
        "increase(llamacpp_model_failures_total[10m]) > 0",
        "warning",
        f"{where}: the router's model {{{{ $labels.gen_ai_request_model }}}} failed to load, or died.",
    )
    yield Alert(
        "LlamatelTelemetryDropped",
        "increase(llamatel_records_dropped_total[5m]) > 0"
        " or (llamatel_records_dropped_total > 0 unless llamatel_records_dropped_total offset 5m)",
        "warning",
        "llamatel on {{ $labels.instance }} loses telemetry ({{ $labels.reason }}): is the OTLP endpoint up and fast "
        "enough? Inference is not touched.",
    )
    yield Alert(
        "LlamatelRequestsLost",
        "increase(llamatel_requests_lost_total[10m]) > 0",
        "warning",
        f'{where}: the ends of {{{{ $value | printf "%.0f" }}}} requests were not seen in its log.',
    )
    yield Alert(
        "LlamatelLogNotUnderstood",
        "llamatel_log_understood == 0",
        "warning",
        f"{where} generates tokens that its log does not show: traces and histograms lack them. Was it started with "
        "--log-disable, or with -lv below 3?",
        wait="1m",
    )
    yield Alert(
        "LlamatelCollectorFailing",
        "llamatel_collector_success == 0",
        "warning",
        "The collector {{ $labels.collector }} of llamatel on {{ $labels.instance }} fails: its log has the reason. "
        "--no-collector {{ $labels.collector }} turns it off.",
        wait="5m",
    )


def _burning(where: str) -> Iterator[Alert]:
    """An objective that is missed so often that its error budget will not last (multi-window, multi-burn-rate)."""
    budget = 1 - alarms.OBJECTIVE
    said = {"ttft": "wait long for their first token", "tpot": "get their tokens slowly"}
    helps = {
        "ttft": "Raise -np if requests are deferred; let prompts share a prefix, or shorten them, if prefill is long.",
        "tpot": "Lower -np, offload more layers (-ngl), or take a smaller quantisation.",
    }
    for name, (_, objective) in _OBJECTIVES.items():
        for speed, factor, short, long in (("Fast", _FAST_BURN, "5m", "1h"), ("Slow", alarms.BURN_RATE, "30m", "6h")):
            missed = f"llamacpp:{name}_missed:ratio_rate"
            limit = f"{round(factor * budget, 6):g}"
            yield Alert(
                f"Llamacpp{name.capitalize()}Objective{speed}Burn",
                f"{missed}{short} > {limit} and {missed}{long} > {limit}",
                "critical" if speed == "Fast" else "warning",
                f"{where}: requests {said[name]}: {{{{ $value | humanizePercentage }}}} of them missed {objective:g} s "
                f"in the last {short}, against {budget:.0%} allowed. {helps[name]}",
            )


def files() -> dict[str, dict[str, Any]]:
    """The rule files by name, as data."""
    return {
        "recording.yml": {"groups": [{"name": "llamatel-recording", "rules": list(recording())}]},
        "alerts.yml": {"groups": [{"name": "llamatel-alerts", "rules": [alert.rule() for alert in alerts()]}]},
    }


def rendered() -> dict[str, str]:
    """The rule files by name, as text. Needs PyYAML."""
    import yaml

    head = "# Made from llamatel_dashboards/rules.py by `python -m llamatel_dashboards.rules`: change it there.\n"
    return {
        name: head + yaml.safe_dump(content, sort_keys=False, width=118, allow_unicode=True)
        for name, content in files().items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
