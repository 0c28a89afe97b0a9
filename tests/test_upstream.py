"""The comparison with the newest llama.cpp finds what differs."""

from __future__ import annotations

import json

from tests.golden.reading import LOGS
from tests.parts.wheels import RELEASES
from tests.upstream.__main__ import log, metrics, template


def recorded() -> tuple[str, dict[str, object]]:
    name = RELEASES[0]
    return (LOGS / f"{name}.log").read_text(), json.loads((LOGS / f"{name}.json").read_text())


def test_upstream_recorded_log_has_no_drift() -> None:
    text, truth = recorded()
    assert not list(log(text, truth))
    assert not list(metrics(truth))


def test_upstream_finds_reworded_lines_and_new_metrics() -> None:
    text, truth = recorded()
    areas = {area for area, _ in log(text.replace("processing task, is_child", "working on task, is_child"), truth)}
    assert areas == {"log line", "request"}
    values = dict(truth["metrics"])  # type: ignore[call-overload]
    values["new_total"] = values.pop("tokens_predicted_total")
    assert list(metrics({"metrics": values})) == ["new_total: new", "tokens_predicted_total: gone"]


def test_upstream_template() -> None:
    assert template("0.01.023.260 I srv  llama_server: listening on http://127.0.0.1:38335") == template(
        "0.11.023.260 I srv  llama_server: listening on http://127.0.0.1:8080"
    )
