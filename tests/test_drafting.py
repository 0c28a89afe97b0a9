"""Whether drafting pays, on a real server: as the clients measure it."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import urllib3

from llamatel.llama import ServerManager
from llamatel.records import Completion
from llamatel.ui.drafting import drafting
from tests.parts import wait_until
from tests.parts.wheels import xllamacpp_server


def test_drafting_verdict_agrees_with_clients(tiny_model: Path) -> None:
    """A build of April 2026: later ones ignore a request's ``speculative.n_max``."""
    records: list[Completion] = []
    rates: dict[bool, list[float]] = {True: [], False: []}
    drafted = accepted = 0
    with ServerManager(backend=str(xllamacpp_server("2026.4.8672.1"))) as server:
        server.subscribe(records.append)
        flags = ["-t", "1", "-md", str(tiny_model)]
        server.start_server(tiny_model, port=0, n_parallel=1, ctx_size=2048, extra_args=flags)
        server.wait_until_ready(60)
        for number in range(8):
            body = {"prompt": f"Number {number}", "n_predict": 60, "ignore_eos": True, "temperature": 0}
            plain = number % 2 == 1
            options = {"speculative.n_max": 0} if plain else {}
            url = f"{server.base_url}/completion"
            answer = urllib3.PoolManager(retries=False).request("POST", url, json=body | options, timeout=60)
            timings = answer.json()["timings"]
            rates[plain].append(timings["predicted_per_second"])
            drafted += timings.get("draft_n", 0)
            accepted += timings.get("draft_n_accepted", 0)
            wait_until(lambda: len(records) > number, 60, "the request's record")  # noqa: B023 - called at once
    found = drafting(records, {})
    assert found is not None
    assert found.acceptance == pytest.approx(accepted / drafted)
    assert found.speedup == pytest.approx(statistics.median(rates[False]) / statistics.median(rates[True]), rel=0.02)
    assert found.tokens_per_second == pytest.approx(statistics.median(rates[False]), rel=0.02)
