"""Rates by context and busy slots: against made-up requests, and against clients' own timings on a real server."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from llamatel.cli.doctor import ceilings_in
from llamatel.flags.server_settings import ServerSettings
from llamatel.gpu.ceilings import prefill_ceiling, prefill_operations
from llamatel.llama import ServerManager
from llamatel.records import Completion
from llamatel.ui.request_speed import RateLine, request_speed
from tests.parts import wait_until
from tests.samples import completion
from tests.test_gpu import CARD, SHAPE_1B

FIXED, BASE, SLOPE, STEP, STEP_SLOPE = 0.02, 1 / 40_000, 1e-9, 0.01, 1e-7


def made(at: float, computed: int, cached: int, noise: float = 1.0, slots: int = 1) -> Completion:
    """A request of 20 tokens on a server that is ``slots`` times slower with so many busy slots."""
    prefill = (FIXED + computed * (BASE + SLOPE * (cached + computed / 2))) * noise
    decode = 19 * slots * (STEP + STEP_SLOPE * (computed + cached + 9)) * noise
    return completion(
        started_at=at, first_token_at=at + prefill, ended_at=at + prefill + decode, prefill_s=prefill, decode_s=decode,
        prompt_computed=computed, prompt_cached=cached, generated=20, context_tokens=computed + cached + 19,
    )  # fmt: skip


def session(noise: float = 0.0) -> list[Completion]:
    """Long new prompts and short additions to long ones, one after the other."""
    numbers, found = random.Random(3), list[Completion]()
    for number in range(60):
        at = found[-1].ended_at if found else 0.0
        lengths = (30_000, 0) if number % 5 == 0 else (numbers.randrange(100, 400), numbers.randrange(1000, 40_000))
        found.append(made(at, *lengths, noise=numbers.gauss(1, noise)))
    return found


def test_speed_lines_of_exact_requests() -> None:
    speed = request_speed(session(), decode_ceiling=lambda _: 1000.0)
    [prefill], [short], [decode] = speed.prefill, speed.prefill_short, speed.decode
    assert (prefill.requests, prefill.slope_s) == (12, 0)
    assert prefill.points[0].tokens_per_second == pytest.approx(1 / (BASE + SLOPE * 15_000 + FIXED / 30_000))
    assert short.points[0].tokens_per_second > short.points[-1].tokens_per_second
    assert (decode.base_s, decode.slope_s) == pytest.approx((STEP, STEP_SLOPE), rel=1e-3)
    assert decode.spread == pytest.approx(0, abs=1e-3)
    assert (prefill.busy_slots, decode.busy_slots, decode.requests) == (1, 1, 60)
    last = decode.points[-1]
    assert last.tokens_per_second == pytest.approx(1 / (STEP + STEP_SLOPE * last.context), rel=1e-3)
    assert last.ceiling_share == pytest.approx(last.tokens_per_second / 1000)


def test_speed_lines_of_scattered_requests() -> None:
    """Noise, and single requests that took a hundred times as long."""
    requests = [made(10_000.0 * n, 1000, 500 * n, 100.0 if n in (0, 7) else 1 + 0.1 * (n % 3)) for n in range(40)]
    speed = request_speed(requests)
    [prefill], [decode] = speed.prefill, speed.decode
    for point in prefill.points:
        assert point.tokens_per_second == pytest.approx(
            1 / (BASE + SLOPE * point.context + FIXED / 1000) / 1.1, rel=0.1
        )
    for point in decode.points:
        assert point.tokens_per_second == pytest.approx(1 / (STEP + STEP_SLOPE * point.context) / 1.1, rel=0.1)
    assert decode.spread == pytest.approx(0.09, abs=0.03)


def test_speed_lines_by_busy_slots() -> None:
    """Pairs of requests that start together, and others alone."""
    alone = [made(100.0 * number, 400, 50 * number) for number in range(8)]
    pairs = [made(10_000 + 100.0 * (number // 2), 400, 50 * number, slots=2) for number in range(16)]
    speed = request_speed([*alone, *pairs])
    assert [(line.busy_slots, line.requests) for line in speed.decode] == [(1, 8), (2, 16)]
    assert speed.decode_by_busy_slots[1] == pytest.approx(2 * speed.decode_by_busy_slots[2], rel=0.01)


def test_speed_lines_need_enough_requests_and_contexts() -> None:
    same = [made(100.0 * number, 400, 1000) for number in range(9)]
    assert request_speed(same[:7]).decode == ()
    [line] = request_speed(same).decode
    assert (line.slope_s, len({point.context for point in line.points})) == (0, 1)
    assert request_speed([]).prefill == ()


def test_prefill_ceiling() -> None:
    operations = prefill_operations(SHAPE_1B, 512, 29_744)
    assert CARD.peak_flops is not None
    assert operations is not None
    ceiling = prefill_ceiling(SHAPE_1B, ServerSettings(), [CARD], 30_000)
    assert ceiling == pytest.approx(512 * CARD.peak_flops / operations)


def test_ceilings_from_a_page() -> None:
    """``llamatel doctor`` of a running llamatel knows the ceiling from the shares on its page."""
    speed = request_speed(session(), decode_ceiling=lambda context: 1 / (1e-3 + 1e-8 * context))
    prefill, decode = ceilings_in(json.loads(json.dumps(dataclasses.asdict(speed))))
    assert prefill is None
    assert decode is not None
    assert decode(20_000) == pytest.approx(1 / (1e-3 + 1e-8 * 20_000))
    for invalid in (None, [1], {"decode": 1}, {"prefill": [], "decode": [{"points": [{"context": "x"}]}]}):
        assert ceilings_in(invalid) == (None, None)


# -- against clients -----------------------------------------------------------------------------------------------


def sent(url: str, lengths: list[int], at_once: int) -> list[dict[str, Any]]:
    """The ``timings`` of prompts of so many tokens, from clients that wait for each other."""
    found: list[dict[str, Any]] = []
    barrier = threading.Barrier(at_once)

    def client(own: list[int]) -> None:
        http = urllib3.PoolManager(retries=False)
        for length in own:
            barrier.wait(60)
            numbers = random.Random(length)
            prompt = [numbers.randrange(10, 60) for _ in range(length)]
            body = {"prompt": prompt, "n_predict": 40, "ignore_eos": True, "cache_prompt": False}
            found.append(http.request("POST", f"{url}/completion", json=body, timeout=120).json()["timings"])

    threads = [threading.Thread(target=client, args=(lengths[first::at_once],)) for first in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def test_speed_lines_agree_with_clients(tiny_model: Path) -> None:
    """The fitted rates are those of an independent regression over the responses' timings."""
    records: list[Completion] = []
    lengths = [100 + 37 * number for number in range(12)]
    with ServerManager(backend="xllamacpp") as server:
        server.subscribe(records.append)
        server.start_server(tiny_model, port=0, n_parallel=2, ctx_size=2048, extra_args=["-t", "1", "--cache-ram", "0"])
        server.wait_until_ready(60)
        assert server.base_url
        timings = {1: sent(server.base_url, lengths, 1), 2: sent(server.base_url, [*lengths, *lengths], 2)}
        wait_until(lambda: len(records) == 36, 60, "the requests' records")
    for at_once, own in ((1, records[:12]), (2, records[12:])):
        speed = request_speed(own)
        rows = [
            (t["predicted_ms"] / 1e3, t["predicted_n"] - 1, t["prompt_n"] + t["predicted_n"] / 2)
            for t in timings[at_once]
        ]
        agree(speed.decode, regression(rows), len(rows))
        rows = [(t["prompt_ms"] / 1e3, t["prompt_n"], t["prompt_n"] / 2) for t in timings[at_once]]
        agree(speed.prefill_short, regression(rows), len(rows))
        assert at_once == 2 or (len(speed.decode), len(speed.prefill_short)) == (1, 1)


def regression(rows: list[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Seconds, tokens and context of requests: seconds for a token, and for a token and unit of context.

    By Theil and Sen, with numpy; and without a slope, which may or may not be measurable on a busy machine.
    """
    seconds, tokens, context = np.array(rows).T
    each, (first, second) = seconds / tokens, np.triu_indices(len(rows), 1)
    apart = context[first] != context[second]
    slopes = (each[first] - each[second])[apart] / (context[first] - context[second])[apart]
    slope = float(np.median(slopes))
    return [(float(np.median(each - slope * context)), slope), (float(np.median(each)), 0.0)]


def agree(lines: tuple[RateLine, ...], candidates: list[tuple[float, float]], requests: int) -> None:
    """The rate in the middle is the clients', where all requests are in one line."""
    for line in lines:
        middle = line.points[len(line.points) // 2]
        if line.requests == requests:
            base, slope = candidates[0 if line.slope_s else 1]
            assert middle.tokens_per_second == pytest.approx(1 / (base + slope * middle.context), rel=0.03)
