"""The shipped dashboards: fresh, complete, explained, and about metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from llamatel.metrics import METRICS, SERVER_ATTRIBUTES, Metric
from llamatel.telemetry.prometheus_names import prometheus_label, prometheus_series
from llamatel_dashboards.published import dashboards
from tests.dashboard_queries import PanelQuery, interpolate, panel_queries, panels, selectors, variable_queries

VARIABLES = [
    "datasource",
    "job",
    "instance",
    "server",
    "port",
    "model",
    "error_budget",
    "ttft_objective",
    "tpot_objective",
]
OFF_PANEL = {
    row.name: "the conventions' new name, which a client has to opt into, for what is on a panel by its present one"
    for row in METRICS
    if row.name.startswith("gen_ai.client.inference.")
} | {"llamacpp.server.stale": "it qualifies what other panels show: whether it is new or the last one known"}
"""Metrics that no panel shows, and why."""
QUERIES = list(panel_queries())
SERIES = prometheus_series()


def labels_of(row: Metric) -> set[str]:
    """Labels that a series of a metric may have in Prometheus."""
    return {"job", "instance", "le", *map(prometheus_label, (*SERVER_ATTRIBUTES, *row.attributes))}


def test_the_json_is_fresh() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's builders need Python 3.11")
    from llamatel_dashboards.build import build

    shipped = {name: json.dumps(model, indent=1, sort_keys=True) + "\n" for name, model in dashboards().items()}
    assert shipped == build(), "stale: make dashboards"


def test_grafanas_own_schema_knows_every_field() -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="it needs Python 3.11")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder").JSONEncoder
    for model in dashboards().values():
        assert json.loads(json.dumps(models.Dashboard.from_json(model), cls=encoder)) == model


def test_shipping_needs_nothing_of_grafanas() -> None:
    program = (
        "import sys, llamatel_dashboards.published as p; assert p.dashboards();"
        "assert not [name for name in sys.modules if name.startswith('grafana')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_queries_are_promql_about_metrics_and_labels_that_exist(query: PanelQuery) -> None:
    found = list(selectors(query.sent()))
    assert found
    rows = [SERIES[name] for name, _ in found]
    known = set.union(*map(labels_of, rows))
    for row, (_, matched) in zip(rows, found, strict=True):
        assert matched <= labels_of(row)
    grouped = {
        label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query.expr) for label in group.split(",")
    }
    shown = set(re.findall(r"{{(\w+)}}", query.legend))
    assert (grouped | shown) - {""} <= known


def test_variables_are_the_same_everywhere_and_ask_for_what_exists() -> None:
    for model in dashboards().values():
        assert [variable["name"] for variable in model["templating"]["list"]] == VARIABLES
    for _, selector, label in variable_queries():
        [matched] = re.findall(r'__name__=~"([^"]+)"', interpolate(selector))
        rows = [SERIES[name] for name in matched.split("|")]
        assert all(label in labels_of(row) for row in rows)


def test_objectives_that_can_be_chosen_are_bounds_of_their_histograms() -> None:
    bounds = {row.name: row.buckets for row in METRICS}
    for name, metric in (
        ("ttft", "gen_ai.server.time_to_first_token"),
        ("tpot", "gen_ai.server.time_per_output_token"),
    ):
        for model in dashboards().values():
            [variable] = [each for each in model["templating"]["list"] if each["name"] == f"{name}_objective"]
            assert {float(option["value"]) for option in variable["options"]} <= set(bounds[metric])


def test_every_metric_is_on_a_panel_or_says_why_not() -> None:
    shown = {SERIES[name].name for query in QUERIES for name, _ in selectors(query.sent())}
    assert {row.name for row in METRICS} - shown == set(OFF_PANEL)


def each_panel() -> list[Any]:
    return [
        pytest.param(panel, id=f"{name}: {panel['title']}")
        for name, model in dashboards().items()
        for panel in panels(model)
    ]


@pytest.mark.parametrize("panel", each_panel())
def test_a_panel_explains_itself_and_never_shows_nan(panel: dict[str, Any]) -> None:
    means, act = panel["description"].split("\n\n**What to do:** ")
    assert len(means) > 15
    assert len(act) > 5
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["noValue"]
    assert defaults["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    if panel["type"] in ("stat", "timeseries", "bargauge"):
        [unknown] = [mapping for mapping in defaults["mappings"] if mapping["type"] == "special"]
        assert unknown["options"]["match"] == "null+nan"


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_is_laid_out_and_linked(name: str) -> None:
    model = dashboards()[name]
    assert model["uid"].startswith("llamatel-")
    assert [link["tags"] for link in model["links"] if link["includeVars"] and link["keepTime"]] == [["llamatel"]]
    assert model["tags"] == ["llamatel"]
    numbers = [panel["id"] for panel in model["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in model["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboards_have_names_of_their_own() -> None:
    models = list(dashboards().values())
    assert len({model["uid"] for model in models}) == len({model["title"] for model in models}) == len(models)
