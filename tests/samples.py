"""Made-up records, for tests of the code that processes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llamatel.collectors import Collector
from llamatel.flags.parse import parse_server_flags
from llamatel.metrics import Kind, table
from llamatel.plan.model_shape import LayerShape, ModelShape, Weights
from llamatel.records import Completion, Outcome, ServerInfo
from llamatel.snapshots import (
    KvCacheState,
    LogCounts,
    ProcessState,
    PromptCacheState,
    RouterModel,
    ServerSnapshot,
    SlotState,
    Snapshot,
)

SERVER = ServerInfo("127.0.0.1", 8090, "tiny", build="b7001", backend="llama-server", pid=4711)
START_TIME = 1_790_000_000.0


def completion(**changes: Any) -> Completion:
    """A request that waited 0.25 s, prefilled for 0.5 s and decoded for 1 s (21 tokens), with the given changes."""
    return dataclasses.replace(
        Completion(
            server=SERVER,
            slot=2,
            task=17,
            started_at=START_TIME,
            ended_at=START_TIME + 1.5,
            outcome=Outcome.OK,
            queue_s=0.25,
            prefill_s=0.5,
            decode_s=1.0,
            first_token_at=START_TIME + 0.5,
            prompt_computed=30,
            prompt_cached=10,
            generated=21,
            context_tokens=60,
            truncated=False,
        ),
        **changes,
    )


def cut_short(outcome: Outcome, error: str | None = None, **changes: Any) -> Completion:
    """A request that did not complete: llama.cpp's log has no figures for it."""
    unknown = dict.fromkeys(
        ("queue_s", "prefill_s", "decode_s", "first_token_at", "prompt_computed", "prompt_cached", "generated")
    )
    return completion(outcome=outcome, error=error, **unknown, **changes)


def server_snapshot(**changes: Any) -> ServerSnapshot:
    """A server that is up and has some counts, with the given changes."""
    return dataclasses.replace(
        ServerSnapshot(
            server=SERVER,
            up=True,
            restarts=1,
            process_started_at=START_TIME - 60,
            loading_s=0.75,
            counters={
                "prompt_tokens_total": 300.0,
                "prompt_tokens_cached_total": 100.0,
                "tokens_predicted_total": 210.0,
            },
            log=LogCounts(
                lines={"request": 70, "other": 1},
                requests_lost=2,
                understood=True,
                silent_s=0.0,
                bytes_lost=4096,
            ),
        ),
        **changes,
    )


SHAPE = ModelShape(
    "llama",
    tuple(LayerShape(index, heads=4, kv_heads=2, key_length=16, value_length=16) for index in range(2)),
    context_length=4096,
    embedding_length=64,
    experts=8,
    experts_used=2,
    file_type="F32",
    weights=Weights(n_bytes=400, parameters=100, active_parameters=60, active_bytes=240),
)


def known_snapshot(**changes: Any) -> ServerSnapshot:
    """A server with all figures known, with the given changes."""
    return server_snapshot(
        **{
            "state": "ready",
            "deferred": 3,
            "slots": (
                SlotState(0, True, 1024, 300, task=17, prompt_computed=40, prompt_cached=250, decoded=11),
                SlotState(1, False, 1024, 100, task=12),
            ),
            "decode_rate": 50.0,
            "kv_cache": KvCacheState(
                capacity=1024,
                unified=True,
                active=300,
                cached=100,
                planned_bytes={"k": 4096, "v": 4096},
                reported_bytes={"k": 4096, "v": 4096},
                used_bytes={"k": 1600, "v": 1600},
            ),
            "context_shifts": 1,
            "prompt_cache": PromptCacheState(entries=2, size_bytes=2048),
            "process": ProcessState(cpu_user_s=1.0, cpu_system_s=0.5, memory_bytes=1 << 20),
            "model": SHAPE,
            "settings": parse_server_flags(["-c", "1024", "-np", "2"], environ={}),
            **changes,
        }
    )


def model_snapshot(**changes: Any) -> ServerSnapshot:
    """A model of a router, with the given changes."""
    model = dataclasses.replace(SERVER, model="other")
    life = RouterModel(loads=2, evictions=1, failures=0)
    return dataclasses.replace(ServerSnapshot(model, up=None, state="unloaded", router_model=life), **changes)


def snapshot(*servers: ServerSnapshot, **changes: Any) -> Snapshot:
    """A snapshot of these servers, by default of one that is up."""
    return dataclasses.replace(Snapshot(START_TIME, servers or (server_snapshot(),)), **changes)


def samples_of(collector: Collector, record: Completion | Snapshot) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    """Value and attributes of each sample by metric, checked against the table; without the counts' start times."""
    rows = table()
    found: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    made = collector.on_completion(record) if isinstance(record, Completion) else collector.on_snapshot(record)
    for sample in made:
        assert set(sample.attributes) <= set(rows[sample.metric].attributes)
        if rows[sample.metric].kind is Kind.COUNTER and sample.value == 0:
            continue
        found.setdefault(sample.metric, []).append((sample.value, sample.attributes))
    return found
