"""The shipped dashboards and rules, with the user's choices, laid out for Grafana, Prometheus and Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamatel_dashboards import manifests, rules
from llamatel_dashboards.queries import SERVER_LABELS, with_labels, without_native
from llamatel_dashboards.rule_options import RuleOptions

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "grafana"
RULES = HERE / "rules"
GRAFANA_FOLDER = "llamatel"
FOREIGN = ("/var/lib/grafana/dashboards", "/etc/grafana")
"""Folders that Grafana's own provisioning and charts read: two providers of one dashboard block each other."""

_INPUT = "DS_PROMETHEUS"
_PROVIDER = """\
# Grafana reads this at start from its provisioning/dashboards. `path` is where it finds the dashboards' JSON: a folder
# that no other provider reads, as two providers of one dashboard block each other.
apiVersion: 1
providers:
  - name: llamatel
    folder: llamatel
    type: file
    allowUiUpdates: false
    options:
      path: {path}
"""
_PROMETHEUS = """\
# Grafana reads this at start from its provisioning/datasources.
apiVersion: 1
datasources:
  - name: llamatel Prometheus
    uid: llamatel-prometheus
    type: prometheus
    access: proxy
    url: {url}
    jsonData:
      timeInterval: 15s
      httpMethod: POST
"""
_EXEMPLARS = """\
      # A dot on a histogram's panel leads to the trace of that request.
      exemplarTraceIdDestinations:
        - name: trace_id
          datasourceUid: llamatel-tempo
  - name: llamatel Tempo
    uid: llamatel-tempo
    type: tempo
    access: proxy
    url: {url}
"""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Choices of ``llamatel dashboards export``."""

    rules: RuleOptions = field(default_factory=RuleOptions)
    dashboards_path: str | None = None
    """Where Grafana finds the JSON files, if that is not where they are written."""
    prometheus_url: str | None = None
    """Provision a data source for it; None leaves Grafana's data sources alone."""
    tempo_url: str | None = None
    victoria_metrics: bool = False
    """The data source is VictoriaMetrics, which rejects some functions of native histograms."""


def dashboards(options: RuleOptions | None = None, *, victoria_metrics: bool = False) -> dict[str, dict[str, Any]]:
    """Each dashboard's model by its file's name, with the objectives preset."""
    models = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    if victoria_metrics:
        for model in models.values():
            for panel in model["panels"]:
                for target in panel.get("targets", ()):
                    target["expr"] = without_native(target["expr"])
    if options is not None and options.keep_labels:
        for model in models.values():
            _show_labels(model, options.keep_labels)
    if options is not None:
        objectives = options.objectives
        presets = {
            "ttft_objective": objectives.ttft_s,
            "tpot_objective": objectives.tpot_s,
            "error_budget": objectives.error_budget,
        }
        for model in models.values():
            for variable in model["templating"]["list"]:
                if variable["name"] in presets:
                    _preset(variable, f"{presets[variable['name']]:g}")
    return models


def _show_labels(model: dict[str, Any], labels: tuple[str, ...]) -> None:
    """Keep labels of targets in queries by server and show them in legends, before the target's name."""
    shown = " ".join(f"{{{{{label}}}}}" for label in labels if label not in SERVER_LABELS)
    added = [label for label in labels if label not in SERVER_LABELS]
    for panel in model["panels"]:
        for target in panel.get("targets", ()) if added else ():
            target["expr"] = with_labels(target["expr"], added)
            legend = target.get("legendFormat", "")
            if "{{instance}}" in legend:
                target["legendFormat"] = f"{shown} {legend}"


def _preset(variable: dict[str, Any], value: str) -> None:
    """Select a value of a custom variable; a new one is added to its choices."""
    values = [option["value"] for option in variable["options"]]
    values = sorted({*values, value}, key=float)
    variable["query"] = ",".join(values)
    variable["options"] = [{"selected": each == value, "text": each, "value": each} for each in values]
    variable["current"] = {"selected": True, "text": value, "value": value}


def importable(model: Mapping[str, Any]) -> dict[str, Any]:
    """A dashboard for Dashboards > New > Import, which prompts for the data source by ``__inputs``."""
    copied: dict[str, Any] = json.loads(json.dumps(model))
    for variable in copied["templating"]["list"]:
        if variable["type"] == "datasource":
            variable["current"] = {"selected": True, "text": f"${{{_INPUT}}}", "value": f"${{{_INPUT}}}"}
    requires = [
        {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "11.0.0"},
        {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
    ]
    inputs = {
        "name": _INPUT,
        "label": "Prometheus",
        "description": "Where llamatel's metrics are",
        "type": "datasource",
    }
    inputs |= {"pluginId": "prometheus", "pluginName": "Prometheus"}
    return {"__inputs": [inputs], "__requires": requires, **copied}


def files(folder: Path, options: ExportOptions) -> dict[str, str]:
    """The text of every file of an export by its path below ``folder``."""
    models = dashboards(options.rules, victoria_metrics=options.victoria_metrics)
    rendered = {name: json.dumps(model, indent=1, sort_keys=True) + "\n" for name, model in models.items()}
    found = {f"dashboards/{name}": text for name, text in rendered.items()}
    found |= {f"import/{name}": json.dumps(importable(model), indent=1) + "\n" for name, model in models.items()}
    where = options.dashboards_path or str((folder / "dashboards").absolute())
    found["provisioning/dashboards/llamatel.yaml"] = _PROVIDER.format(path=json.dumps(where))
    if options.prometheus_url is not None:
        sources = _PROMETHEUS.format(url=json.dumps(options.prometheus_url))
        if options.tempo_url is not None:
            sources += _EXEMPLARS.format(url=json.dumps(options.tempo_url))
        found["provisioning/datasources/llamatel.yaml"] = sources
    rule_files = rules.rendered(options.rules)
    found |= {f"rules/{name}": text for name, text in rule_files.items()}
    found |= {f"kubernetes/{name}": text for name, text in manifests.rendered(rules.groups(options.rules), rendered)}
    return found


def export(folder: Path, options: ExportOptions | None = None) -> list[Path]:
    """Write dashboards, provisioning files, rules and Kubernetes manifests; returns the paths of the files."""
    written = []
    for name, text in files(folder, options or ExportOptions()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
