"""How far the estimated compute buffers are from llama-server's: ``python -m tests.exact.estimates``.

Over the models of the suite, and over any GGUF files named on the command line.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llamatel.llama.gguf import parse_gguf_header
from llamatel.model import ModelShape, shape_from_gguf
from llamatel.plan import parse_server_flags
from llamatel.plan.estimates import compute_bytes
from llamatel.plan.settings import resolve
from tests.parts import free_port, llama_server

from .compare import shape_of
from .harness import Bench, preloaded_library
from .models import MODELS
from .writer import read_table, write_model

SETTINGS = ("-c 4096 -np 1", "-c 8192 -np 4", "-c 16384 -np 1 -ub 128", "-c 8192 -np 1 -fa off")
_BUFFER = re.compile(r"compute buffer size = +([\d.]+) MiB")


def models(folder: Path, files: list[str]) -> Iterator[tuple[str, Path, ModelShape]]:
    """Name, file and shape."""
    if files:
        for name in files:
            yield Path(name).stem, Path(name), shape_from_gguf(parse_gguf_header(name, read_tensors=True))
        return
    table = read_table()
    for model in MODELS:
        path = write_model(folder / "model.gguf", model, table[model.name])
        yield model.name, path, shape_of(model, set(table[model.name]))


def main(files: list[str]) -> int:
    """Prints each row, then the errors' median and quartiles."""
    errors: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(llama_server(), preloaded_library(folder), free_port(), folder / "record.txt")
        for name, path, shape in models(folder, files):
            for line in SETTINGS:
                flags = line.split()
                settings = parse_server_flags(["-fit", "off", *flags], environ={})
                cells = resolve(settings, shape.context_length, causal=shape.causal)
                found = _BUFFER.findall(bench.allocate(path, [*flags, "-lv", "4"]).output)
                if cells is None or not found:
                    continue
                flash = shape.flash_attention and settings.flash_attn != "off"
                estimate, real = (compute_bytes(shape, cells, flash=flash) or 0) / (1 << 20), float(found[0])
                errors.append(estimate / real - 1)
                print(
                    f"{name:28} {line:28} {real:10.2f} MiB, estimated {estimate:10.2f} ({errors[-1]:+.0%})", flush=True
                )
    absolute = sorted(map(abs, errors))
    quartiles = statistics.quantiles(absolute, n=4)
    print(
        f"{len(errors)} rows: a quarter within {quartiles[0]:.1%}, half within {quartiles[1]:.1%}, "
        f"three quarters within {quartiles[2]:.1%}, the worst {absolute[-1]:.0%}; {sum(e < 0 for e in errors)} too low"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
