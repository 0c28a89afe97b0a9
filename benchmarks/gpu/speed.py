"""Prefill and decode rate by context and busy slots: requests of known lengths, and the clients' own regression.

``python -m benchmarks.gpu.speed URL --json FILE`` sends prompts of 500 to 30,000 tokens, one and then four at a time,
and writes the responses' timings.
``python -m benchmarks.gpu.speed --compare FILE --log LOG --model GGUF --device h100`` compares them with what
``llamatel doctor`` reads in that server's log.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf import parse_gguf_header
from llamatel.gpu.ceilings import decode_ceiling, prefill_ceiling
from llamatel.plan import shape_from_gguf
from llamatel.plan.gpu_catalog import GPUS
from llamatel.snapshots import DeviceSnapshot
from llamatel.ui.request_speed import SHORT

_LENGTHS = (500, 1000, 2000, 4000, 8000, 12_000, 16_000, 20_000, 24_000, 30_000)
_ANSWER, _ADDED = 64, 200


def _send(url: str, prompt: list[int]) -> dict[str, Any]:
    body = json.dumps(
        {"prompt": prompt, "n_predict": _ANSWER, "ignore_eos": True, "return_tokens": True, "logit_bias": [[50, 1e3]]}
    )
    request = urllib.request.Request(f"{url}/completion", body.encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310 - a server of our own
        found: dict[str, Any] = json.loads(answer.read())
    return found


def load(url: str, at_once: int, seed: int) -> list[dict[str, float]]:
    """Conversations of three turns with prompts of all lengths, by so many clients that wait for each other."""
    timings: list[dict[str, float]] = []
    barrier = threading.Barrier(at_once)

    def client(number: int) -> None:
        numbers = random.Random(f"{seed} {number}")
        for length in _LENGTHS:
            prompt = numbers.choices(range(10, 60), k=length)
            for _ in range(3):
                barrier.wait(600)
                found = _send(url, prompt)
                timings.append(found["timings"] | {"at_once": at_once})
                prompt += [*found["tokens"], *numbers.choices(range(10, 60), k=_ADDED)]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return timings


def regression(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Seconds, tokens and context of requests: seconds for a token, and for a token and unit of context.

    The line with the least absolute errors, found by weighted least squares.
    """
    import numpy as np

    seconds, tokens, context = np.array(rows).T
    each = seconds / tokens
    design = np.stack([np.ones_like(context), context], axis=1)
    weights = np.ones_like(each)
    for _ in range(100):
        found = np.linalg.lstsq(design * weights[:, None], each * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(each - design @ found), 1e-4 * np.median(each)))
    return float(found[0]), float(found[1])


def _rows(timings: Sequence[dict[str, float]], phase: str, busy: int) -> list[tuple[float, float, float]]:
    own = [one for one in timings if one["at_once"] == busy]
    if phase == "decode":
        return [
            (t["predicted_ms"] / 1e3, t["predicted_n"] - 1, t["cache_n"] + t["prompt_n"] + t["predicted_n"] / 2)
            for t in own
        ]
    return [
        (t["prompt_ms"] / 1e3, t["prompt_n"], t["cache_n"] + t["prompt_n"] / 2)
        for t in own
        if (t["prompt_n"] < SHORT) == (phase == "prefill_short")
    ]


def compare(timings: Sequence[dict[str, float]], log: Path, model: Path, device: str) -> list[dict[str, Any]]:
    """Each line of ``doctor`` next to the clients' regression, at the line's points."""
    settings, shape = ServerSettings(), shape_from_gguf(parse_gguf_header(model, read_tensors=True))
    gpu = next(gpu for gpu in GPUS if gpu.key == device)
    card = DeviceSnapshot("0", gpu.name, 0.0, bandwidth=gpu.bandwidth, peak_flops=gpu.peak_flops)
    command = [sys.executable, "-m", "llamatel.cli.main", "doctor", "--log", str(log), "--json"]
    speed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["speed"]
    figures = []
    for phase in ("prefill", "prefill_short", "decode"):
        most = decode_ceiling if phase == "decode" else prefill_ceiling
        for line in speed[phase]:
            rows = _rows(timings, phase, line["busy_slots"])
            base, slope = regression(rows) if rows else (math.nan, 0.0)
            for point in line["points"]:
                rate, ceiling = point["tokens_per_second"], most(shape, settings, [card], point["context"])
                figures.append(
                    {
                        "phase": phase,
                        "busy_slots": line["busy_slots"],
                        "requests": [line["requests"], len(rows)],
                        "context": point["context"],
                        "doctor": round(rate),
                        "clients": round(1 / (base + slope * point["context"])) if rows else None,
                        "of_ceiling": round(rate / ceiling, 3) if ceiling else None,
                        "spread": round(line["spread"], 3),
                    }
                )
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a server, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="h100")
    options = parser.parse_args(arguments)
    if options.compare is not None:
        for row in compare(json.loads(options.compare.read_text()), options.log, options.model, options.device):
            print(json.dumps(row))
        return
    started = time.monotonic()
    timings = [one for at_once in (1, 4) for one in load(options.url, at_once, at_once)]
    print(f"{len(timings)} requests in {time.monotonic() - started:.1f} s")
    options.json.write_text(json.dumps(timings))


if __name__ == "__main__":
    main()
