"""The queries of the shipped dashboards as Grafana sends them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as promql

from llamatel_dashboards.published import dashboards

WINDOW = "1m"


@dataclass(frozen=True, slots=True)
class PanelQuery:
    """One query of one panel."""

    dashboard: str
    panel: str
    kind: str
    """The panel's type: stat, timeseries, ..."""
    unit: str
    expr: str
    """With Grafana's variables."""
    legend: str

    @property
    def where(self) -> str:
        """Dashboard and panel."""
        return f"{self.dashboard}: {self.panel}"

    def sent(self, **variables: str) -> str:
        """As sent with All selected everywhere, except in ``variables``."""
        return interpolate(self.expr, **variables)


def interpolate(text: str, **variables: str) -> str:
    """With Grafana's variables replaced: ``.*`` for All, the default of an objective, a window."""
    values = {
        **dict.fromkeys(("cluster", "namespace", "job", "instance", "server", "port", "model"), ".*"),
        "error_budget": "0.05",
        "ttft_objective": "2.5",
        "tpot_objective": "0.1",
        "__rate_interval": WINDOW,
        "__range": WINDOW,
        **variables,
    }
    sent = re.sub(r"\$(\w+)", lambda found: values[found[1]], text)
    assert "$" not in sent
    return sent


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels except row headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[PanelQuery]:
    """Every query of every panel."""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            unit = panel["fieldConfig"]["defaults"].get("unit", "")
            for target in panel["targets"]:
                yield PanelQuery(
                    name.removesuffix(".json"),
                    panel["title"],
                    panel["type"],
                    unit,
                    target["expr"],
                    target["legendFormat"],
                )


def variable_queries() -> Iterator[tuple[str, str, str]]:
    """Name, selector and label of each variable that queries Prometheus."""
    for dashboard in dashboards().values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert found is not None, variable
                yield variable["name"], found[1], found[2]


def selectors(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Name and matched labels of each selector in a query; raises ValueError if it is not PromQL."""
    promql.parse(expr)
    for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expr):
        yield name, set(re.findall(r"(\w+)(?:=~|!=|!~|=)\"", matchers))
