"""Print where the newest llama.cpp differs from what llamatel knows: ``python -m tests.upstream [--json]``.

Debian sid's package and the newest xllamacpp wheel, each under the golden load: flags (``--help``), log lines,
requests, metric names, endpoints and cache sizes. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamatel.flags.flag_table import BY_NAME, NEWER
from llamatel.llama.http.server_client import ServerClient
from llamatel.llama.log.log_line import split_line
from tests.exact.builds import Server, servers
from tests.exact.verify import jobs_for, report, run
from tests.golden.reading import LOGS, read, timed
from tests.golden.record import SIZES, record
from tests.parts import Child, free_port
from tests.parts.wheels import RELEASES
from tests.test_flag_table import documented
from tests.tiny_gguf import write_tiny_model

NEWEST = ("sid", RELEASES[0])
MODELS = ("llama", "gemma3:pattern", "qwen35moe", "deepseek32", "nemotron_h", "rwkv6", "cohere2moe")
"""A cache of each kind; all models: ``make verify``."""
_KNOWN_LOG = f"{RELEASES[0]}"
_NUMBER = re.compile(r"[\d.]+|'[^']*'|\(.*?\)|/\S+")
_LONGEST_SHOWN = 100
NEWER_LINES = frozenset(
    (
        "slot get_availabl: id | task - | selected slot by LRU, n_tokens = , t_last =",  # b11669, read
        "slot get_availabl: id | task - | selected slot by LRU, n_tokens = , t_last = -",
        "slot print_timing: id | task | graph reallocs = / /",  # b11669, of no use
    )
)
"""Lines of builds that no recording is of, which llamatel reads, or has no use for."""


@dataclass(frozen=True)
class Drift:
    """One difference."""

    build: str
    area: str
    what: str


def template(line: str) -> str:
    """A line's words without its numbers, names and paths."""
    return " ".join(_NUMBER.sub("", split_line(line).text).split())[:_LONGEST_SHOWN]


def known_templates() -> frozenset[str]:
    """The words of all recorded logs."""
    return (
        frozenset(
            template(line) for path in LOGS.glob("*.log") for line in path.read_text(errors="replace").splitlines()
        )
        | NEWER_LINES
    )


def known_metrics() -> frozenset[str]:
    """llama.cpp's metric names in the newest recording."""
    return frozenset(json.loads((LOGS / f"{_KNOWN_LOG}.json").read_text())["metrics"])


def flags(build: Server) -> Iterator[str]:
    """Flags that one side does not know."""
    done = subprocess.run([build.program, "--help"], capture_output=True, text=True, check=False)
    names = {name for flag, _, _ in documented(done.stdout) for name in flag}
    for name in sorted(names - BY_NAME.keys()):
        yield f"{name}: not in the flag table"
    for name in sorted(BY_NAME.keys() - names - NEWER):
        yield f"{name}: not in --help any more"


def log(text: str, truth: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of words that were never recorded, and requests that are not read as the clients saw them."""
    lines = text.splitlines()
    known = known_templates()
    new = Counter(template(line) for line in lines if split_line(line).time is not None)
    for words, number in new.items():
        if words and words not in known and words.startswith(("slot", "srv", "que")):
            yield "log line", f"{number} x {words}"
    reading = read(timed(lines))
    for kind in ("malformed",):
        if reading.counts.lines.get(kind):
            yield "log line", f"{reading.counts.lines[kind]} {kind}"
    generated = Counter(
        row["timings"]["predicted_n"] for row in truth["requests"] if row["outcome"] == "ok" and "timings" in row
    )
    found = Counter(each.generated for each in reading.completions if each.generated is not None)
    for tokens, number in (generated - found).items():
        yield "request", f"{number} of {tokens} tokens not read from the log"


def metrics(truth: dict[str, Any]) -> Iterator[str]:
    """Metric names that one side does not have."""
    theirs = frozenset(truth["metrics"])
    for name in sorted(theirs - known_metrics()):
        yield f"{name}: new"
    for name in sorted(known_metrics() - theirs):
        yield f"{name}: gone"


def endpoints(build: Server, folder: Path) -> Iterator[str]:
    """Answers that are not understood."""
    model = write_tiny_model(folder / "tiny.gguf")
    port = free_port()
    child = Child([build.program, "-m", model, "--port", str(port), "--metrics"], folder / "endpoints.log")
    try:
        client = ServerClient(f"http://127.0.0.1:{port}", timeout_s=30)
        child.wait_ready(client.healthy, 120)
        props, card = client.props(), client.model_card()
        slots = client.slots()
        for name, value in (
            ("/props: model_path", props.model_path), ("/props: build", props.build),
            ("/v1/models: id", card.name), ("/v1/models: trained context", card.trained_context),
            ("/slots: n_ctx", slots[0].context_size if slots else None), ("/metrics", client.counters() or None),
        ):  # fmt: skip
            if value is None:
                yield f"{name}: not found"
    finally:
        child.stop()


def cache_sizes(build: Server, names: Sequence[str]) -> Iterator[str]:
    """Planned sizes that are not those that llama.cpp allocates."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        report(run(jobs_for(build, names, 0, 1), 1, Path(folder), build), build.name)
    for line in printed.getvalue().splitlines():
        if line.startswith("DIFFERENT"):
            yield line.removeprefix("DIFFERENT ")[:_LONGEST_SHOWN]


def drift(build: Server, *, models: Sequence[str] = MODELS) -> Iterator[Drift]:
    """All differences of one build."""
    name = f"{build.name} ({build.build})"
    for what in flags(build):
        yield Drift(name, "flag", what)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = write_tiny_model(folder / "golden.gguf", **SIZES["mixed"])
        truth = record([str(build.program)], "drift", folder, "mixed", ["-m", str(model)], plain=False)
        for area, what in log((folder / "drift.log").read_text(errors="replace"), truth):
            yield Drift(name, area, what)
        for what in metrics(truth):
            yield Drift(name, "metric", what)
        for what in endpoints(build, folder):
            yield Drift(name, "endpoint", what)
    if models:
        for what in cache_sizes(build, models):
            yield Drift(name, "cache size", what)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--builds", default=",".join(NEWEST), metavar="NAME,...")
    parser.add_argument("--no-cache-sizes", action="store_true", help="leave out the models")
    options = parser.parse_args(argv)
    found: list[Drift] = []
    compared = []
    for build in servers(options.builds.split(",")):
        compared.append(f"{build.name} ({build.build})")
        try:
            found += drift(build, models=() if options.no_cache_sizes else MODELS)
        except (OSError, RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
            found.append(Drift(compared[-1], "run", " ".join(str(error).split())[-400:]))
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    else:
        for each in found:
            print(f"{each.build:28}  {each.area:10}  {each.what}")
        print(f"{len(found)} differences in {', '.join(compared) or 'no build: none can be had here'}", file=sys.stderr)
    return 1 if found or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
