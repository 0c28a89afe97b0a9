"""An agent session with long prompts: seconds of prefill lost before and after the change that ``doctor`` advises.

``python -m benchmarks.gpu.agent --backend LLAMA-SERVER [--tokens 30000] [--json FILE]``. Conversations take turns on
fewer slots than there are conversations; each turn sends the whole history again, as agents do. The clients know which
part of a prompt they had sent before, so they count the loss independently of llamatel.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import re
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.__main__ import SHAPE
from llamatel.flags.server_settings import ServerSettings
from llamatel.records import Completion, Outcome, RecomputeCause, ServerInfo
from llamatel.ui.diagnosis import Observation, diagnose
from tests.tiny_gguf import write_tiny_model

_CONVERSATIONS = 4
_TURN = 200
"""Characters, and with this model tokens, that each turn adds."""
_ANSWER = 32


@contextlib.contextmanager
def _serving(folder: Path, backend: str, model: Path, slots: int, tokens: int) -> Iterator[tuple[str, Path]]:
    """``llamatel serve``: the server's URL and the file with a JSON object per request."""
    rows, log = folder / f"{slots}.jsonl", folder / f"{slots}.txt"
    context = slots * (tokens + 20 * (_TURN + _ANSWER) + 1024)
    command = [
        sys.executable, "-m", "llamatel.cli.main", "serve", str(model), "--backend", backend, "--port", "0",
        "-np", str(slots), "-c", str(context), "-ngl", "99", "--metrics-addr", "none", "--jsonl", str(rows),
        "--", "--no-kv-unified", "--cache-ram", "0",
    ]  # fmt: skip
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 120
            while not (found := re.search(r"server +(http://\S+)", log.read_text(errors="replace"))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text(errors="replace"))
                time.sleep(0.1)
            yield found.group(1), rows
        finally:
            process.terminate()
            process.wait(30)


def _complete(url: str, prompt: str) -> dict[str, Any]:
    body = json.dumps({"prompt": prompt, "n_predict": _ANSWER, "ignore_eos": True, "cache_prompt": True}).encode()
    request = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310 - a server of our own
        found: dict[str, Any] = json.loads(answer.read())
    return found


def session(url: str, tokens: int, turns: int, seed: int = 1) -> dict[str, float]:
    """Run the session; what the clients counted: tokens computed again, and the seconds at each request's own rate."""
    letters = random.Random(seed)

    def text(length: int) -> str:
        return "".join(letters.choices(string.ascii_lowercase, k=length))

    histories = [text(tokens) for _ in range(_CONVERSATIONS)]
    known = [0] * _CONVERSATIONS
    again = again_s = prefill_s = 0.0
    for turn in range(turns):
        index = turn % _CONVERSATIONS
        found = _complete(url, histories[index])
        timings = found["timings"]
        prefill_s += timings["prompt_ms"] / 1e3
        # All but the last token of what was sent before could have been reused.
        lost = max(0, min(known[index], timings["cache_n"] + timings["prompt_n"]) - timings["cache_n"] - 1)
        again += lost
        again_s += lost * timings["prompt_per_token_ms"] / 1e3
        histories[index] += found["content"] + text(_TURN)
        known[index] = timings["cache_n"] + timings["prompt_n"]
    return {"tokens": again, "seconds": again_s, "prefill_s": prefill_s}


def _record(row: dict[str, Any]) -> Completion:
    """A line of ``--jsonl`` as the record that it was written from, as far as the diagnosis reads it."""
    names: tuple[str, ...] = (
        "slot",
        "task",
        "started_at",
        "ended_at",
        "queue_s",
        "prefill_s",
        "decode_s",
        "first_token_at",
    )
    names += ("prompt_computed", "prompt_cached", "prompt_reusable", "prompt_recomputed", "recompute_s", "generated")
    cause = row["recompute_cause"]
    return Completion(
        ServerInfo("127.0.0.1"),
        outcome=Outcome(row["outcome"]),
        recompute_cause=None if cause is None else RecomputeCause(cause),
        **{name: row[name] for name in names},
    )


def measure(backend: str, model: Path, slots: int, tokens: int, turns: int) -> dict[str, Any]:
    """One session on a fresh server: the clients' count, llamatel's count, and ``doctor``'s advice."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _serving(folder, backend, model, slots, tokens) as (url, rows):
            clients = session(url, tokens, turns)
            time.sleep(1.0)
        completions = [_record(json.loads(line)) for line in rows.read_text().splitlines()]
    found = diagnose(
        Observation("agent session", 0.0, tuple(completions), settings=ServerSettings(parallel=slots, ctx_size=tokens))
    )
    return {
        "slots": slots,
        "requests": len(completions),
        "clients": clients,
        "recomputed_s": sum(loss.seconds for loss in found.losses),
        "changes": [dataclasses.asdict(remedy) for remedy in found.changes],
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure with half as many slots as conversations, then with one for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True, help="path of a llama-server")
    parser.add_argument("--model", type=Path, help="a GGUF to use; without: a 1B-shaped random model is made")
    parser.add_argument("--tokens", type=int, default=30_000, help="length of the first prompts (30000)")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_tiny_model(Path(folder) / "model.gguf", half=True, **SHAPE)
        results = [
            measure(options.backend, model, slots, options.tokens, options.turns)
            for slots in (_CONVERSATIONS // 2, _CONVERSATIONS)
        ]
    print(json.dumps(results, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
