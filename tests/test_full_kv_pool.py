"""Full KV pool: by default llama-server's slots share one KV pool, and a full pool fails every request in flight.

With a real Prometheus: the capacity alert fires before the failure, the terminal shows it, split pools do not fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llamatel_dashboards import rules
from tests.load import Answer, Clients, completion
from tests.parts import Prometheus, scrape_config, wait_until
from tests.servers import without_settings
from tests.serving import Serving, Start, servings
from tests.tiny_gguf import write_tiny_model

SLOTS = 4
POOL = 2048
LONG = 900
"""Tokens that each client requests: more than its quarter of the pool, less than all of it."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model slow enough that the last tenth of the pool takes over a second, which is several scrapes."""
    return write_tiny_model(
        tmp_path_factory.mktemp("slow") / "slow.gguf", embedding=512, layers=12, heads=8, feed_forward=2048
    )


@pytest.fixture
def serve(slow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    without_settings(monkeypatch)
    with servings(tmp_path, slow_model, slots=SLOTS, context=POOL // SLOTS) as start:
        yield start


def fill(serving: Serving) -> list[Answer]:
    requests = [completion(f"Tell me about {number}", LONG) for number in range(SLOTS)]
    with Clients(serving.url) as clients:
        return clients.send_all(requests, at_once=SLOTS)


def firing(prometheus: Prometheus, name: str) -> dict[str, Any] | None:
    alerts = prometheus.api("alerts")["alerts"]
    return next((one for one in alerts if one["labels"]["alertname"] == name and one["state"] == "firing"), None)


def test_full_pool_unified_alert_before_failure(
    serve: Start, prometheus: Callable[[Mapping[str, Any]], Prometheus]
) -> None:
    serving = serve("--kv-unified")
    address = serving.page_url.removeprefix("http://")
    prometheus_server = prometheus(
        scrape_config(address, rules=[rules.FOLDER / "recording.yml", rules.FOLDER / "alerts.yml"])
    )
    prometheus_server.wait_for("llamacpp_kv_cache_capacity")
    assert prometheus_server.query("llamacpp_kv_cache_capacity")[0][1] == POOL
    answers = fill(serving)
    finished_at = time.time()
    assert [answer.status for answer in answers] == [500] * SLOTS
    assert all("Context size has been exceeded" in (answer.error or "") for answer in answers)
    wait_until(lambda: firing(prometheus_server, "LlamacppKvHeadroomLow"), 20, "the alert")
    low = firing(prometheus_server, "LlamacppKvHeadroomLow")
    assert low is not None
    warned_at = datetime.fromisoformat(low["activeAt"][:26].rstrip("Z") + "+00:00").timestamp()
    assert warned_at < min(answer.ended_at for answer in answers) <= finished_at
    assert 0.9 < float(low["value"]) <= 1
    assert wait_until(lambda: firing(prometheus_server, "LlamacppContextFull"), 20, "the other alert")
    assert serving.metric("llamacpp_requests_total", outcome="context_full") == SLOTS
    # Usage crossed the threshold before the requests failed, and the whole headroom is available again.
    [(_, usage)] = prometheus_server.query_range('llamacpp_kv_cache_usage{state="active"}', seconds=120, step=1)
    assert max(usage) > 0.9
    assert wait_until(lambda: serving.metric("llamacpp_kv_cache_headroom") == POOL, 20, "the full headroom")
    line = f"{SLOTS} requests failed because the KV pool of {POOL:,} tokens that {SLOTS} slots share was full: raise -c"
    wait_until(lambda: line in serving.child.output(), 20, line)


def test_full_pool_split_slots_complete(serve: Start) -> None:
    serving = serve("--no-kv-unified")
    answers = fill(serving)
    assert [answer.status for answer in answers] == [200] * SLOTS
    wait_until(lambda: serving.metric("llamacpp_requests_total", outcome="ok") == SLOTS, 20, "the records")
    assert serving.metric("llamacpp_requests_total", outcome="context_full") == 0
    assert serving.metric("llamacpp_kv_cache_capacity") == POOL
