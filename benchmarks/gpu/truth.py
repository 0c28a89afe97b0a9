"""Accuracy of llamatel's GPU figures: memory by part, energy, bandwidth, against NVML and arithmetic."""

from __future__ import annotations

import json
import statistics
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu.meter import Meter
from benchmarks.servers import Running
from llamatel.flags.parse import parse_server_flags
from llamatel.gguf import parse_gguf_header
from llamatel.gpu.ceilings import decode_bytes
from llamatel.plan.cache_plan import cache_plan
from llamatel.plan.shape_from_gguf import shape_from_gguf

_MIB = 1 << 20


def complete(port: int, prompt: str, tokens: int) -> dict[str, Any]:
    """One completion by llama.cpp's own route; its timings."""
    body = json.dumps({"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        found: dict[str, Any] = json.loads(answer.read())["timings"]
    return found


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """A scrape, by metric."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def gpu_metrics(server: Running) -> dict[str, Any]:
    """What a Prometheus sees of the GPUs and of the server on them."""
    wanted = ("hw_", "llamatel_gpu_", "llamacpp_gpu_", "llamacpp_decode_ceiling", "llamacpp_kv_cache_size",
              "llamacpp_energy")  # fmt: skip
    return {
        name: [{**labels, "value": value} for labels, value in rows]
        for name, rows in samples(server.scrape()).items()
        if name.startswith(wanted) and not name.endswith("_created")
    }


def planned(model: Path, flags: list[str]) -> dict[str, Any]:
    """The cache by part, and what a token reads, computed from the file's header alone."""
    shape = shape_from_gguf(parse_gguf_header(model, read_tensors=True))
    settings = parse_server_flags(flags)
    cache = cache_plan(shape, settings)
    weights = shape.weights
    return {
        "flags": flags,
        "kv_bytes": cache.total_bytes,
        "exact": cache.exact,
        "weights_bytes": weights.n_bytes if weights else None,
        "weights_on_gpu_bytes": weights.n_bytes - weights.input_bytes + weights.tied_bytes if weights else None,
        "parameters": weights.parameters if weights else None,
        "decode_bytes": {str(context): decode_bytes(shape, settings, context) for context in (1, 1024, 4096, 8192)},
    }


def energy(server: Running, library: Any, jsonl: Path, tokens: int, repeats: int) -> dict[str, Any]:
    """Requests alone, then four at once: llamatel's joules against our own integral of the power."""
    rows, steps = [], []
    trace: list[tuple[float, float, float | None]] = []
    for number in range(repeats):
        for together in (1, 4):
            seen = len(_lines(jsonl))
            with Meter(library) as meter:
                time.sleep(0.5)
                with ThreadPoolExecutor(together) as pool:
                    prompts = [f"{'abcdefgh ' * 100}{number}{each}" for each in range(together)]
                    timings = list(pool.map(lambda text: complete(server.port, text, tokens), prompts))
                time.sleep(0.8)
            finished = _wait_lines(jsonl, seen + together)[seen:]
            start = min(line["started_at"] for line in finished)
            end = max(line["ended_at"] for line in finished)
            known = [line["gpu"] for line in finished if line["gpu"] and line["gpu"]["energy_j"] is not None]
            by_power = meter.integrated(start, end)
            reported = sum(gpu["energy_j"] for gpu in known) if len(known) == together else None
            rows.append(
                {
                    "together": together,
                    "seconds": end - start,
                    "output_tokens": sum(found["predicted_n"] for found in timings),
                    "decode_tokens_per_second": [found["predicted_per_second"] for found in timings],
                    "prefill_tokens_per_second": [found["prompt_per_second"] for found in timings],
                    "llamatel_j": reported,
                    "integrated_power_j": by_power,
                    "counter_j": meter.counted(start, end),
                    "ratio_to_integrated": reported / by_power if reported is not None and by_power else None,
                    "joules_per_output_token": statistics.mean(gpu["output_j_per_token"] for gpu in known)
                    if known and all(gpu["output_j_per_token"] is not None for gpu in known)
                    else None,
                    "shared": [gpu["shared"] for gpu in known],
                    "bandwidth_utilization": [line["gpu"]["bandwidth_utilization"] for line in finished if line["gpu"]],
                    "flops_utilization": [line["gpu"]["flops_utilization"] for line in finished if line["gpu"]],
                    "context_tokens": [line["context_tokens"] for line in finished],
                }
            )
            steps += meter.counter_steps_s()
            trace = trace or [(at - meter.samples[0][0], watts, joules) for at, watts, joules in meter.samples]
    return {
        "runs": rows,
        "counter_step_s": {"median": statistics.median(steps), "max": max(steps)} if steps else None,
        "first_trace": trace,
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wait_lines(path: Path, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 10
    while len(found := _lines(path)) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"llamatel has recorded {len(found)} of {count} requests")
        time.sleep(0.05)
    return found
