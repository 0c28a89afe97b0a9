"""Errors of the estimated compute buffers compared with llama.cpp's own: ``make estimates``.

Over models of real dimensions (``real``), which llama-fit-params loads without allocating; with ``--tiny`` also over
the models of the suite, and over any GGUF files named, on llama-server. The CPU backend's buffers, in both.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llamatel.flags.server_settings import resolve
from llamatel.gguf import parse_gguf_header
from llamatel.plan import ModelShape, parse_server_flags, shape_from_gguf
from llamatel.plan.compute_buffers import compute_bytes
from tests.parts import free_port, llama_server

from .compare import shape_of
from .harness import Bench, preloaded_library
from .models import MODELS
from .real import REAL, NoAlloc, write_sparse
from .real import TABLE as REAL_TABLE
from .writer import read_table, write_model

MIB = 1 << 20
SETTINGS = ("-c 4096 -np 1", "-c 8192 -np 4", "-c 16384 -np 1 -ub 128", "-c 8192 -np 1 -fa off")
_BUFFER = re.compile(r"compute buffer size = +([\d.]+) MiB")


def _estimate(shape: ModelShape, flags: Sequence[str]) -> float:
    """MiB."""
    settings = parse_server_flags(["-fit", "off", *flags], environ={})
    cells = resolve(settings, shape.context_length, causal=shape.causal)
    assert cells is not None
    return (compute_bytes(shape, cells, flash=shape.flash_attention and settings.flash_attn != "off") or 0) / MIB


def _compare(name: str, shape: ModelShape, line: str, real: float) -> float:
    """The relative error, printed."""
    estimate = _estimate(shape, line.split())
    error = estimate / real - 1
    print(f"{name:28} {line:24} {real:9.1f} MiB, estimated {estimate:9.1f} ({error:+.0%})", flush=True)
    return error


def real_models(folder: Path) -> Iterator[float]:
    """Errors on models of real dimensions."""
    table = read_table(REAL_TABLE)
    program = NoAlloc(llama_server())
    for model in REAL:
        path = write_sparse(folder / "real.gguf", model, table[model.name])
        for line in SETTINGS:
            found = program.allocate(path, line.split())
            if found.total_bytes:
                yield _compare(model.name, shape_of(model, set(table[model.name])), line, found.total_bytes / MIB)


def on_server(folder: Path, files: Sequence[Path], *, tiny: bool) -> Iterator[float]:
    """Errors on files and on the models of the suite."""
    bench = Bench(llama_server(), preloaded_library(folder), free_port(), folder / "record.txt")

    def models() -> Iterator[tuple[str, Path, ModelShape]]:
        for path in files:
            yield path.stem, path, shape_from_gguf(parse_gguf_header(path, read_tensors=True))
        table = read_table()
        for model in MODELS if tiny else ():
            if model.target is None:
                path = write_model(folder / "model.gguf", model, table[model.name])
                yield model.name, path, shape_of(model, set(table[model.name]))

    for name, path, shape in models():
        for line in SETTINGS:
            found = _BUFFER.findall(bench.allocate(path, [*line.split(), "-lv", "4"]).output)
            if found:
                yield _compare(name, shape, line, float(found[0]))


def summary(errors: Sequence[float]) -> str:
    """Return median, third quartile and worst."""
    absolute = sorted(map(abs, errors))
    quartiles = statistics.quantiles(absolute, n=4)
    return (
        f"{len(errors)} rows: median error {quartiles[1]:.1%}, three quarters within {quartiles[2]:.1%}, "
        f"worst {absolute[-1]:.0%}; {sum(error < 0 for error in errors)} too low"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(prog="make estimates", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--tiny", action="store_true", help="also the models of the suite")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        real = list(real_models(folder))
        other = list(on_server(folder, options.files, tiny=options.tiny)) if options.tiny or options.files else []
    print(f"models of real dimensions, {summary(real)}")
    if len(other) > 1:
        print(f"the others, {summary(other)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
