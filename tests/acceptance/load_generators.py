"""Load generators: the mean time to first token that aiperf and llama-benchy measure is not below llamatel's.

A server's value has no network and no client in it, so it must not be above the client's.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import statistics
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from tests.parts.environments import aiperf, llama_benchy
from tests.serving import Serving
from tests.tiny_gguf import write_tiny_model

_TOKENS = 24
_LOADS = ((1, 200, 16), (4, 400, 40), (8, 600, 40), (12, 300, 60))
"""Connections, prompt tokens and requests of each load, on four slots."""


def _byte_tokenizer(folder: Path) -> Path:
    """A tokenizer in the format of the ``tokenizers`` package: one token for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    characters = {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocabulary = {character: byte for byte, character in characters.items()} | {"<s>": 256}
    tokenizer = {
        "version": "1.0", "added_tokens": [{"id": 256, "content": "<s>", **special}], "pre_tokenizer": level,
        "decoder": level, "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }  # fmt: skip
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


class _Book:
    """A text over HTTP, as llama-benchy wants it. A context manager."""

    def __init__(self, folder: Path) -> None:
        (folder / "book.txt").write_text("".join(f"Chapter {n}. It was counted {n} times. " for n in range(20_000)))
        handler = functools.partial(_Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/book.txt"

    def __enter__(self) -> _Book:
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


Generator = Callable[[str, int, int, int], "tuple[float, int]"]
"""URL, connections, prompt tokens, requests; returns the mean time to first token in ms, and the requests measured."""


def _run(command: list[str | Path], folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command[0]}: {(done.stdout + done.stderr)[-2000:]}"


def _script(python: Path, name: str) -> tuple[Path, Path]:
    """A script of an environment, which was made in another folder than the one where it is now."""
    return python, python.parent / name


def _aiperf(folder: Path, tokenizer: Path) -> Generator:
    def measure(url: str, connections: int, prompt: int, requests: int) -> tuple[float, int]:
        found = folder / f"aiperf-{connections}"
        _run(
            [
                *_script(aiperf(), "aiperf"), "profile", "-m", "tiny.gguf", "-u", url, "--endpoint-type", "chat",
                "--streaming", "--tokenizer", tokenizer, "--concurrency", str(connections), "--request-count",
                str(requests), "--synthetic-input-tokens-mean", str(prompt), "--output-tokens-mean", str(_TOKENS),
                "--extra-inputs", "ignore_eos:true", "--artifact-dir", found, "--ui", "none",
            ],
            folder,
        )  # fmt: skip
        figures = json.loads((found / "profile_export_aiperf.json").read_text())["time_to_first_token"]
        return float(figures["avg"]), int(figures["count"])

    return measure


def _llama_benchy(folder: Path, tokenizer: Path, book: _Book) -> Generator:
    def measure(url: str, connections: int, prompt: int, requests: int) -> tuple[float, int]:
        found = folder / f"benchy-{connections}.json"
        _run(
            [
                *_script(llama_benchy(), "llama-benchy"), "--base-url", f"{url}/v1", "--model", "tiny.gguf",
                "--tokenizer", tokenizer, "--book-url", book.url, "--pp", str(prompt), "--tg", str(_TOKENS),
                "--exact-tg", "--runs", str(requests // connections), "--concurrency", str(connections),
                "--latency-mode", "none", "--skip-coherence", "--no-warmup", "--save-result", found, "--format", "json",
            ],
            folder,
        )  # fmt: skip
        [load] = json.loads(found.read_text())["benchmarks"]
        return float(load["ttfr"]["mean"]), len(load["ttfr"]["values"])

    return measure


def run(folder: Path) -> dict[str, object]:
    """Each load of each generator on a server of its own."""
    model = write_tiny_model(folder / "tiny.gguf")
    tokenizer = _byte_tokenizer(folder / "tokenizer")
    figures: dict[str, object] = {}
    with _Book(folder) as book:
        generators = {"aiperf": _aiperf(folder, tokenizer), "llama-benchy": _llama_benchy(folder, tokenizer, book)}
        for name, generate in generators.items():
            for connections, prompt, requests in _LOADS:
                place = folder / f"server-{name}-{connections}"
                place.mkdir()
                serving = Serving(place, model)
                try:
                    client_ms, measured = generate(serving.url, connections, prompt, requests)
                finally:
                    serving.child.stop()
                # A generator's requests to find out about the server are shorter.
                known = [row["ttft_s"] for row in serving.records() if row["generated"] == _TOKENS]
                server_ms = statistics.mean(value for value in known if value is not None) * 1e3
                load = {
                    "requests": measured, "with_ttft": sum(value is not None for value in known),
                    "client_ms": round(client_ms, 1), "server_ms": round(server_ms, 1),
                }  # fmt: skip
                figures[f"{name}, {connections} connections"] = load
                assert measured == len(known), figures
                assert load["with_ttft"] >= 0.9 * measured, figures
                assert server_ms <= client_ms, figures
    return figures
