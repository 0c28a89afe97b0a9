"""Attribute sets: resolved once, bounded in number and length on every metric kind."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llamatel.collectors import Sample
from llamatel.metrics import METRICS, Kind
from llamatel.records import ServerInfo
from llamatel.snapshots import SlotState
from llamatel.telemetry import attribute_sets
from llamatel.telemetry.attribute_sets import AttributeSets
from llamatel.telemetry.instruments import Instruments
from llamatel.telemetry.metric_store import MetricStore
from tests.samples import SERVER, completion, server_snapshot, snapshot
from tests.telemetry import Telemetry, telemetry

SERVERS = 150
SLOTS = tuple(SlotState(number, busy=True, context_tokens=1, task=1, decoded=1) for number in range(4))


def scrape(running: Telemetry) -> str:
    assert running.pipeline.metrics_url is not None
    with urllib.request.urlopen(running.pipeline.metrics_url, timeout=60) as answer:
        return str(answer.read().decode())


def test_attribute_sets_server_series_after_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamatel.telemetry.instruments._SAME_MOMENT_S", 0.0)
    with telemetry(metrics_addr="127.0.0.1:0") as running:
        for generation in range(5):
            ports = range(SERVERS * generation, SERVERS * (generation + 1))
            running.state = snapshot(
                *(replace(server_snapshot(), server=replace(SERVER, port=port), slots=SLOTS) for port in ports)
            )
            text = scrape(running)
            for name, times in (("llamacpp_server_up", 1), ("llamacpp_slot_context_tokens", len(SLOTS))):
                found = re.findall(rf'^{name}{{.*server_port="(\d+)"', text, re.MULTILINE)
                assert sorted(map(int, found)) == sorted(times * list(ports))


def test_attribute_sets_bound_models_on_every_kind(caplog: pytest.LogCaptureFixture) -> None:
    models = [f"model-{number}" for number in range(2000)]
    with telemetry(metrics_addr="127.0.0.1:0") as running:
        for model in models:
            running.send(completion(server=replace(SERVER, model=model)))
        running.state = snapshot(*(replace(server_snapshot(), server=replace(SERVER, model=model)) for model in models))
        text = scrape(running)
    by_metric: dict[str, set[str]] = {}
    count = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "gen_ai_request_model" in sample.labels:
                by_metric.setdefault(family.name, set()).add(sample.labels["gen_ai_request_model"])
            if sample.name == "llamacpp_requests_total":
                count += sample.value
    assert {len(values) for name, values in by_metric.items() if "request" in name} == {attribute_sets.MAX_MODELS + 1}
    assert all(len(values) <= attribute_sets.MAX_MODELS + 1 for values in by_metric.values())
    assert "other" not in by_metric["llamacpp_server_up"]  # gauges have no 'other' series
    assert "other" in by_metric["llamacpp_tokens"]  # totals add up
    assert count == len(models)
    assert len(text) < 20 << 20
    assert re.search(
        r'^llamatel_label_values_limited_total\{attribute="gen_ai_request_model"\} \d', text, re.MULTILINE
    ) or ('llamatel_label_values_limited_total{attribute="gen_ai.request.model"}' in text)
    assert len([record for record in caplog.records if "further values are reported as 'other'" in record.message]) == 1


def test_attribute_sets_bound_the_length_of_values() -> None:
    sets = AttributeSets(METRICS)
    found = sets.resolve(Sample("llamacpp.requests", 1, replace(SERVER, model="m" * 100_000), {"outcome": "ok"}))
    assert len(str(found.attributes["gen_ai.request.model"])) == attribute_sets.MAX_LENGTH


def test_attribute_sets_bound_servers_and_evict_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribute_sets, "MAX_SERVERS", 10)
    now = [0.0]
    sets = AttributeSets(METRICS, clock=lambda: now[0])
    ports = [
        sets.resolve(Sample("llamacpp.server.up", 1, ServerInfo("h", port))).attributes.get("server.port")
        for port in range(20)
    ]
    assert ports == [*range(10), *[None] * 10]
    now[0] = 10_000.0
    assert sets.resolve(Sample("llamacpp.server.up", 1, ServerInfo("h", 99))).attributes["server.port"] == 99


def test_attribute_sets_bound_other_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribute_sets, "MAX_VALUES", 5)
    sets = AttributeSets(METRICS)
    name = "gen_ai.server.request.duration"
    errors = {
        sets.resolve(Sample(name, 1, SERVER, {"error.type": f"e{n}"})).attributes["error.type"] for n in range(50)
    }
    assert errors == {"e0", "e1", "e2", "e3", "e4", "other"}
    assert sets.limited == {"error.type": 45}


def test_attribute_sets_memory_is_bounded_under_new_values() -> None:
    sets = AttributeSets(METRICS)
    for number in range(20_000):
        sets.resolve(Sample("llamacpp.requests", 1, replace(SERVER, model=f"m{number}"), {"outcome": "ok"}))
    assert len(sets._cached) <= attribute_sets.MAX_MODELS
    assert len(sets._unique) <= attribute_sets.MAX_MODELS + 1


def test_metric_store_drops_series_of_removed_servers() -> None:
    now = [1000.0]
    store = MetricStore(clock=lambda: now[0])
    servers: list[ServerInfo] = []
    moment = [0.0]
    instruments = Instruments(
        None, METRICS, lambda: [Sample("llamacpp.server.up", 1, server) for server in servers], store=store,
        clock=lambda: moment[0],
    )  # fmt: skip
    client_only = ServerInfo("elsewhere", 1)
    instruments.record(Sample("gen_ai.client.token.usage", 1, client_only))
    for port in range(60):
        servers[:] = [ServerInfo("127.0.0.1", port)]
        instruments.record(Sample("llamacpp.requests", 1, servers[0], {"outcome": "ok"}))
        moment[0] += 10
        store.collect()
        now[0] += 400
    store.collect()
    families = {family.row.name: family.points for family in store.collect()}
    assert len(families["llamacpp.requests"]) <= 2
    assert len(families["gen_ai.client.token.usage"]) == 1
    assert {row.kind for row in store._recorded} <= {Kind.COUNTER, Kind.HISTOGRAM}
