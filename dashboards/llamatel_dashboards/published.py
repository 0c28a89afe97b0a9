"""The dashboards and rules as they are shipped: read, and laid out for Grafana's provisioning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "grafana"
RULES = HERE / "rules"
GRAFANA_FOLDER = "llamatel"

_PROVIDER = """\
# Grafana reads this at start from its provisioning/dashboards. `path` is where it finds the dashboards' JSON.
apiVersion: 1
providers:
  - name: llamatel
    folder: llamatel
    type: file
    allowUiUpdates: true
    options:
      path: {path}
"""
_SOURCES = """\
# Grafana reads this at start from its provisioning/datasources. Change the addresses to yours.
apiVersion: 1
datasources:
  - name: Prometheus
    uid: llamatel-prometheus
    type: prometheus
    access: proxy
    url: http://prometheus:9090
    isDefault: true
    jsonData:
      timeInterval: 15s
      httpMethod: POST
      # A dot on a histogram's panel leads to the trace of that request.
      exemplarTraceIdDestinations:
        - name: trace_id
          datasourceUid: llamatel-tempo
  - name: Tempo
    uid: llamatel-tempo
    type: tempo
    access: proxy
    url: http://tempo:3200
"""


def dashboards() -> dict[str, dict[str, Any]]:
    """Each dashboard's model by its file's name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def export(folder: Path, dashboards_path: str | None = None) -> list[Path]:
    """Write dashboards, provisioning files and Prometheus rules below ``folder``; returns what was written.

    ``dashboards_path`` is where Grafana will find the JSON files, if that is not where they are written.
    """
    files = {f"dashboards/{path.name}": path.read_text() for path in sorted(FOLDER.glob("*.json"))}
    where = dashboards_path or str((folder / "dashboards").resolve())
    files["provisioning/dashboards/llamatel.yaml"] = _PROVIDER.format(path=json.dumps(where))
    files["provisioning/datasources/llamatel.yaml"] = _SOURCES
    files |= {f"rules/{path.name}": path.read_text() for path in sorted(RULES.glob("*.yml"))}
    written = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(path)
    return written
