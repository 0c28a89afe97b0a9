"""The shipped dashboards: up to date, complete, described, and only existing metrics."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import promql_parser
import pytest

from llamatel.metrics import METRICS, SERVER_ATTRIBUTES, Kind
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_name
from llamatel_dashboards.published import dashboards
from llamatel_dashboards.queries import without_native
from llamatel_dashboards.rule_options import RuleOptions
from tests.dashboard_queries import PanelQuery, interpolate, panel_queries, panels, selectors, variable_queries
from tests.prometheus_series import prometheus_series

VARIABLES = [
    "datasource", "cluster", "namespace", "job", "instance", "server", "port", "model", "error_budget",
    "ttft_objective", "tpot_objective", "filters",
]  # fmt: skip
OFF_PANEL = {
    row.name: "the conventions' new name, which a client has to opt into, for what is on a panel by its present one"
    for row in METRICS
    if row.name.startswith(("gen_ai.client.inference.", "gen_ai.client.embeddings."))
} | {
    "llamacpp.speculative.accepted": "the panels show acceptance over all positions",
    "llamacpp.server.stalled": "the panels of the server's state show it",
    "llamacpp.lora.adapter": "for inference gateways",
    "llamatel.spool.size": "only with --otlp-spool",
    "llamatel.spool.spans": "only with --otlp-spool",
    "llamacpp.server.stale": "it qualifies what other panels show: whether it is new or the last one known",
}
"""Metrics that no panel shows, and why."""
QUERIES = list(panel_queries())
SERIES = prometheus_series() | {prometheus_name(row): row for row in METRICS if row.kind is Kind.HISTOGRAM}
"""Also histograms in native form, which have their family's name."""
TARGET = {"cluster", "namespace", "pod", "job", "instance", "server_path"}
PROMETHEUS = {"up": set(), "ALERTS": {"alertname", "alertstate"}, "ALERTS_FOR_STATE": {"alertname", "alertstate"}}
"""Series that Prometheus generates, and their labels apart from the target's."""


def labels_of(name: str) -> set[str]:
    """Labels that a series may have in Prometheus."""
    if name in PROMETHEUS:
        return TARGET | PROMETHEUS[name]
    return {*TARGET, "le", *map(prometheus_label, (*SERVER_ATTRIBUTES, *SERIES[name].attributes))}


def test_dashboards_json_is_fresh() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's builders need Python 3.11")
    from llamatel_dashboards.build import build

    shipped = {name: json.dumps(model, indent=1, sort_keys=True) + "\n" for name, model in dashboards().items()}
    assert shipped == build(), "stale: make dashboards"


def test_dashboards_fit_grafanas_schema() -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="it needs Python 3.11")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder").JSONEncoder
    for model in dashboards().values():
        for annotation in model["annotations"]["list"]:  # Prometheus' own fields, which the schema leaves open
            assert annotation.pop("titleFormat")
            assert annotation.pop("textFormat")
            assert annotation.pop("step")
        assert json.loads(json.dumps(models.Dashboard.from_json(model), cls=encoder)) == model


def test_dashboards_published_needs_no_grafana_sdk() -> None:
    program = (
        "import sys, llamatel_dashboards.published as p; assert p.dashboards();"
        "assert not [name for name in sys.modules if name.startswith('grafana')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_dashboards_queries_use_existing_metrics_and_labels(query: PanelQuery) -> None:
    found = list(selectors(query.sent()))
    assert found
    known = set.union(*(labels_of(name) for name, _ in found))
    for name, matched in found:
        assert matched <= labels_of(name)
    groups = re.findall(r"\b(?:by|on|ignoring) \(([^)]*)\)", query.expr)
    grouped = {label.strip() for group in groups for label in group.split(",")}
    shown = set(re.findall(r"{{(\w+)}}", query.legend))
    assert (grouped | shown) - {""} <= known


def test_dashboards_keep_and_show_labels_of_targets() -> None:
    options = RuleOptions(keep_labels=("team", "env", "namespace"))
    plain, labelled = dashboards(), dashboards(options)
    by = 0
    for name, model in labelled.items():
        for before, after in zip(plain[name]["panels"], model["panels"], strict=True):
            for old, new in zip(before.get("targets", ()), after.get("targets", ()), strict=True):
                promql_parser.parse(interpolate(new["expr"]))
                expr = new["expr"].replace(", team, env", "")
                assert expr == old["expr"]
                by += new["expr"] != old["expr"]
                if "{{instance}}" in old["legendFormat"]:
                    assert new["legendFormat"] == f"{{{{team}}}} {{{{env}}}} {old['legendFormat']}"
    assert by > 50
    assert dashboards(RuleOptions(keep_labels=("namespace",))) == dashboards(RuleOptions())


def test_dashboards_have_the_same_variables() -> None:
    for model in dashboards().values():
        assert [variable["name"] for variable in model["templating"]["list"]] == VARIABLES
    for _, selector, label in variable_queries():
        [matched] = re.findall(r'__name__=~"([^"]+)"', interpolate(selector))
        assert all(label in labels_of(name) for name in matched.split("|"))


def test_dashboards_objectives_are_bucket_bounds() -> None:
    bounds = {row.name: row.buckets for row in METRICS}
    for name, metric in (
        ("ttft", "gen_ai.server.time_to_first_token"),
        ("tpot", "gen_ai.server.time_per_output_token"),
    ):
        for model in dashboards().values():
            [variable] = [each for each in model["templating"]["list"] if each["name"] == f"{name}_objective"]
            assert {float(option["value"]) for option in variable["options"]} <= set(bounds[metric])


def test_dashboards_show_every_metric() -> None:
    queried = {name for query in QUERIES for name, _ in selectors(query.sent())}
    shown = {SERIES[name].name for name in queried - set(PROMETHEUS)}
    assert {row.name for row in METRICS} - shown == set(OFF_PANEL)


def each_panel() -> list[Any]:
    return [
        pytest.param(panel, id=f"{name}: {panel['title']}")
        for name, model in dashboards().items()
        for panel in panels(model)
    ]


@pytest.mark.parametrize("panel", each_panel())
def test_panel_description_unit_and_texts(panel: dict[str, Any]) -> None:
    meaning, action = panel["description"].split("\n\n**What to do:** ")
    assert len(meaning) > 15
    assert len(action) > 5
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["noValue"]
    assert defaults["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    if panel["type"] in ("stat", "timeseries", "bargauge"):
        [unknown] = [mapping for mapping in defaults["mappings"] if mapping["type"] == "special"]
        assert unknown["options"]["match"] == "null+nan"
    if defaults["noValue"] == "No request log":
        assert all(" or -group(" in target["expr"] or "llamatel" in target["expr"] for target in panel["targets"])
    if panel["type"] == "timeseries":
        legend = panel["options"]["legend"]
        assert (legend["displayMode"], legend["calcs"][:2]) == ("table", ["mean", "max"])


def test_dashboards_annotations_use_existing_metrics() -> None:
    for model in dashboards().values():
        found = {each["name"]: each["expr"] for each in model["annotations"]["list"]}
        assert list(found) == ["Alerts", "Restarts", "Loads", "Evictions"]
        for expr in found.values():
            for name, matched in selectors(interpolate(expr)):
                assert matched <= labels_of(name)


def test_dashboards_legends_by_server_show_the_instance() -> None:
    by_server = [query for query in QUERIES if "server_address" in query.legend]
    assert len(by_server) > 20
    assert all("{{instance}}" in query.legend for query in by_server)


def test_servers_table_has_colours_order_and_links() -> None:
    tables = [panel for model in dashboards().values() for panel in panels(model) if panel["title"] == "Servers"]
    assert [panel["type"] for panel in tables] == ["table", "table"]
    for panel in tables:
        assert panel["options"]["sortBy"] == [{"desc": False, "displayName": "up"}]  # those that are down first
        looks: dict[str, dict[str, Any]] = {}
        for override in panel["fieldConfig"]["overrides"]:
            looks.setdefault(override["matcher"]["options"], {}).update(
                (each["id"], each["value"]) for each in override["properties"]
            )
        coloured = {name for name, look in looks.items() if "custom.cellOptions" in look}
        assert {"up", "failed", "waiting", "KV headroom"} <= coloured
        assert {name for name, look in looks.items() if "links" in look} == {"instance", "server"}


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_without_native_is_valid_for_victoria_metrics(query: PanelQuery) -> None:
    left = without_native(query.expr)
    assert not re.search(r"histogram_(sum|count|avg)\(", left)
    assert list(selectors(interpolate(left)))
    assert left == query.expr or "histogram_" in query.expr


@pytest.mark.parametrize("name", dashboards())
def test_dashboard_layout_and_links(name: str) -> None:
    model = dashboards()[name]
    assert model["uid"].startswith("llamatel-")
    assert [link["tags"] for link in model["links"] if link["includeVars"] and link["keepTime"]] == [["llamatel"]]
    assert model["tags"] == ["llamatel"]
    numbers = [panel["id"] for panel in model["panels"]]
    assert len(set(numbers)) == len(numbers)
    used_cells: set[tuple[int, int]] = set()
    for panel in model["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & used_cells, panel["title"]
        used_cells |= cells


def test_dashboards_have_unique_names() -> None:
    models = list(dashboards().values())
    assert len({model["uid"] for model in models}) == len({model["title"] for model in models}) == len(models)
