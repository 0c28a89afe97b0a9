"""The wall: by default llama-server's slots share one KV pool, and a full pool kills every request in flight.

Here with a real Prometheus: the warning comes before the end, on the terminal too, and split pools do not have it.
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
"""Tokens that each client wants: more than its quarter of the pool, less than all of it."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that the last tenth of the pool takes a second and more, which is several scrapes."""
    return write_tiny_model(
        tmp_path_factory.mktemp("slow") / "slow.gguf", embedding=512, layers=12, heads=8, feed_forward=2048
    )


@pytest.fixture
def serve(slow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    without_settings(monkeypatch)
    with servings(tmp_path, slow_model, slots=SLOTS, context=POOL // SLOTS) as start:
        yield start


def fill(serving: Serving) -> list[Answer]:
    asks = [completion(f"Tell me about {number}", LONG) for number in range(SLOTS)]
    with Clients(serving.url) as clients:
        return clients.send_all(asks, at_once=SLOTS)


def firing(prometheus: Prometheus, name: str) -> dict[str, Any] | None:
    alerts = prometheus.api("alerts")["alerts"]
    return next((one for one in alerts if one["labels"]["alertname"] == name and one["state"] == "firing"), None)


def test_four_requests_die_and_it_was_foretold(
    serve: Start, prometheus: Callable[[Mapping[str, Any]], Prometheus]
) -> None:
    serving = serve("--kv-unified")
    address = serving.page_url.removeprefix("http://")
    watching = prometheus(scrape_config(address, rules=[rules.FOLDER / "recording.yml", rules.FOLDER / "alerts.yml"]))
    watching.wait_for("llamacpp_kv_cache_capacity")
    assert watching.query("llamacpp_kv_cache_capacity")[0][1] == POOL
    answers = fill(serving)
    ended = time.time()
    assert [answer.status for answer in answers] == [500] * SLOTS
    assert all("Context size has been exceeded" in (answer.error or "") for answer in answers)
    wait_until(lambda: firing(watching, "LlamacppKvHeadroomLow"), 20, "the alert")
    low = firing(watching, "LlamacppKvHeadroomLow")
    assert low is not None
    warned = datetime.fromisoformat(low["activeAt"][:26].rstrip("Z") + "+00:00").timestamp()
    assert warned < min(answer.ended_at for answer in answers) <= ended
    assert 0.9 < float(low["value"]) <= 1
    assert wait_until(lambda: firing(watching, "LlamacppContextFull"), 20, "the other alert")
    assert serving.metric("llamacpp_requests_total", outcome="context_full") == SLOTS
    # What was left for the requests crossed the threshold before they died, and is all there again.
    [(_, usage)] = watching.query_range('llamacpp_kv_cache_usage{state="active"}', seconds=120, step=1)
    assert max(usage) > 0.9
    assert wait_until(lambda: serving.metric("llamacpp_kv_cache_headroom") == POOL, 20, "the headroom's return")
    line = f"{SLOTS} requests failed because the KV pool of {POOL:,} tokens that {SLOTS} slots share was full: raise -c"
    wait_until(lambda: line in serving.child.output(), 20, line)


def test_split_pools_do_not_have_it(serve: Start) -> None:
    serving = serve("--no-kv-unified")
    answers = fill(serving)
    assert [answer.status for answer in answers] == [200] * SLOTS
    wait_until(lambda: serving.metric("llamacpp_requests_total", outcome="ok") == SLOTS, 20, "the records")
    assert serving.metric("llamacpp_requests_total", outcome="context_full") == 0
    assert serving.metric("llamacpp_kv_cache_capacity") == POOL
