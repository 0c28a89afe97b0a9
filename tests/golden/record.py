"""Records a real llama.cpp server's log together with its clients' responses.

    python -m tests.golden.record --python VENV/bin/python --name 2026.10.11549        # an xllamacpp release
    python -m tests.golden.record --server PATH/llama-server --name jsonl --scenario few -- --log-jsonl

It writes NAME.log (stdout and stderr in one, as printed) and NAME.json (the truth: one row a request, and llama.cpp's
own counters at the end). README.md in this folder describes the scenarios.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.golden.load import ROUTED, SCENARIOS, Client
from tests.tiny_gguf import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
SIZES: dict[str, dict[str, Any]] = {
    "mixed": {"embedding": 256, "layers": 8, "feed_forward": 1024},
    "queued": {"embedding": 256, "layers": 8, "feed_forward": 1024},
    "unnoticed": {"embedding": 256, "layers": 8, "feed_forward": 1024},
    "slow": {"embedding": 512, "layers": 12, "heads": 8, "feed_forward": 2048},
}


def wait_for(log: Path, process: subprocess.Popen[bytes], pattern: str, seconds: float = 60) -> re.Match[bytes]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        text = log.read_bytes()
        if found := re.search(pattern.encode(), text):
            return found
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not print {pattern!r}:\n{log.read_text(errors='replace')[-2000:]}")


def record(command: list[str], name: str, out: Path, scenario: str, extra: list[str], *, plain: bool) -> dict[str, Any]:
    """Run the scenario and write its two files; return the expected data."""
    load, flags = SCENARIOS[scenario]
    common = ["--port", "0", "--metrics", *([] if plain else ["--log-prefix", "--log-timestamps"])]
    with tempfile.TemporaryDirectory(prefix="golden-") as directory:
        work = Path(directory)
        shape = SIZES.get(scenario, {})
        if scenario == "router":
            (work / "models").mkdir()
            for seed, model in enumerate(ROUTED):
                write_tiny_model(work / "models" / f"{model}.gguf", seed=seed)
            arguments = [*flags, *common, *extra]
        else:
            write_tiny_model(work / "tiny.gguf", **shape)
            arguments = ["-m", "tiny.gguf", *flags, *common, *extra]
        log = work / "log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLAMA_CACHE": str(work / "cache")}
        with log.open("ab") as output:
            zero = time.monotonic()
            process = subprocess.Popen(
                [*command, *arguments], cwd=work, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        try:
            port = wait_for(log, process, r"listening on http://127\.0\.0\.1:(\d+)")[1].decode()
            client = Client(f"http://127.0.0.1:{port}", zero, ROUTED if scenario == "router" else ())
            while client.http.request("/health", total_s=120).status != 200:
                time.sleep(0.05)
            load(client)
            counters = {}
            if scenario == "killed":
                process.kill()
                time.sleep(0.5)
            else:
                client.wait_idle()
                counters = client.metrics()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # A router prints the path of its binary: the only text that is replaced.
        text = log.read_bytes().replace(os.fsencode(Path(command[0]).parent), b"/opt/llama.cpp")
        if str(work).encode() in text or str(ROOT).encode() in text:
            raise RuntimeError("the log holds a path of this machine")
    (out / f"{name}.log").write_bytes(text)
    truth = {
        "name": name,
        "scenario": scenario,
        "build": version_of(command, text),
        "flags": arguments,
        "metrics": counters,
        "requests": [{k: v for k, v in asdict(seen).items() if v is not None} for seen in client.seen],
    }
    rows = ",\n  ".join(json.dumps(row) for row in truth.pop("requests"))
    head = json.dumps(truth, indent=1)[:-2]
    (out / f"{name}.json").write_text(f'{head},\n "requests": [\n  {rows}\n ]\n}}\n')
    return json.loads((out / f"{name}.json").read_text())  # type: ignore[no-any-return]


def version_of(command: list[str], log: bytes) -> str:
    """Return the wheel's version, or the one that llama-server reports."""
    if wheel := re.search(rb"xllamacpp: wheel (\S+)", log):
        return "xllamacpp " + wheel[1].decode()
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version: (.+)", version.stdout + version.stderr)
    return "llama-server " + (found[1] if found else "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record a server's log and its clients' responses.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--python", help="a Python that has the xllamacpp release to record")
    which.add_argument("--server", help="a llama-server binary")
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "logs")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="mixed")
    parser.add_argument("--plain", action="store_true", help="without --log-prefix and --log-timestamps")
    parser.add_argument("extra", nargs="*", help="more flags for the server, after --")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    command = (
        [str(Path(options.server).resolve())]
        if options.server
        else [str(Path(options.python).absolute()), "-m", "llamatel.llama.server.xllamacpp_server"]
    )
    truth = record(command, options.name, options.out, options.scenario, options.extra, plain=options.plain)
    outcomes = [row["outcome"] for row in truth["requests"]]
    size = (options.out / f"{options.name}.log").stat().st_size
    print(options.name, {o: outcomes.count(o) for o in sorted(set(outcomes))}, f"{size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
