"""Servers that come and go do not use up the SDK's room for attribute sets, nor memory."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from llamatel.snapshots import SlotState
from llamatel.telemetry import attribute_sets
from tests.samples import SERVER, server_snapshot, snapshot
from tests.telemetry import telemetry

SERVERS = 150
SLOTS = tuple(SlotState(number, busy=True, context_tokens=1, task=1, decoded=1) for number in range(4))


def test_every_server_has_its_series_however_many_were_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamatel.telemetry.instruments._SAME_MOMENT_S", 0.0)
    with telemetry(metrics_addr="127.0.0.1:0") as running:
        url = running.pipeline.metrics_url
        assert url is not None
        for generation in range(5):
            ports = range(SERVERS * generation, SERVERS * (generation + 1))
            running.state = snapshot(
                *(replace(server_snapshot(), server=replace(SERVER, port=port), slots=SLOTS) for port in ports)
            )
            with urllib.request.urlopen(url, timeout=30) as answer:
                text = answer.read().decode()
            assert "overflow" not in text
            for name, times in (("llamacpp_server_up", 1), ("llamacpp_slot_context_tokens", len(SLOTS))):
                told = re.findall(rf'^{name}{{.*server_port="(\d+)"', text, re.MULTILINE)
                assert sorted(map(int, told)) == sorted(times * list(ports))


class Observed:
    """A counter and a gauge of whichever servers a test names."""

    def __init__(self) -> None:
        self.servers: list[int] = []
        self.reader = InMemoryMetricReader()
        attribute_sets.raise_limits(self.reader)
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        attribute_sets.forget_removed(self.provider)
        meter = self.provider.get_meter("tests")
        meter.create_observable_counter("total", [self._observe])
        meter.create_observable_gauge("level", [self._observe])

    def _observe(self, _options: CallbackOptions) -> Iterator[Observation]:
        return (Observation(7, {"server": server}) for server in self.servers)

    def collect(self, *servers: int) -> dict[tuple[str, object], NumberDataPoint]:
        self.servers = list(servers)
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            (metric.name, (point.attributes or {}).get("server")): point
            for metric in data.resource_metrics[0].scope_metrics[0].metrics
            for point in metric.data.data_points
            if isinstance(point, NumberDataPoint)
        }

    def kept(self) -> int:
        [storage] = self.provider._measurement_consumer._reader_storages.values()
        matches = [match for matches in storage._instrument_view_instrument_matches.values() for match in matches]
        return max(len(match._attributes_aggregation) for match in matches)


def test_those_that_are_gone_are_forgotten_and_the_others_go_on() -> None:
    observed = Observed()
    begun = observed.collect(-1)["total", -1].start_time_unix_nano
    for generation in range(40):
        points = observed.collect(-1, *range(100 * generation, 100 * generation + 100))
        assert len(points) == 2 * 101
        assert points["total", -1].start_time_unix_nano == begun
        assert points["total", -1].value == points["level", -1].value == 7
        assert observed.kept() < 500


def test_a_server_that_is_away_for_a_while_keeps_the_start_of_its_counters() -> None:
    observed = Observed()
    begun = observed.collect(1, 2)["total", 1].start_time_unix_nano
    assert set(observed.collect(2)) == {("total", 2), ("level", 2)}
    assert observed.collect(1, 2)["total", 1].start_time_unix_nano == begun
