"""Find a model's tensors with llama.cpp's loader, which reports each missing tensor and each expected shape.

``python -m tests.exact.discover [NAME ...]`` fills in ``tensors.txt`` for missing or named models. Run it after a
change of ``models.py``, or for a new llama.cpp.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llamatel.plan.architectures import ARCHITECTURES
from tests.parts import free_port, library_server, llama_server, sid_llama_server

from .harness import Allocation, Bench, preloaded_library
from .models import MODELS, SPECULATION, TinyModel
from .real import REAL, NoAlloc, write_sparse
from .real import TABLE as REAL_TABLE
from .tensor_names import Shape
from .writer import TABLE, format_table, read_table, write_model

MISSING = re.compile(r"missing tensor '([^']+)'|tensor '([^']+)' not found")
SHAPE = re.compile(r"tensor '([^']+)' has wrong shape; expected ([\d, ]+), got")
ROUNDS = 600


def _like_the_layer_before(name: str, tensors: dict[str, Shape]) -> Shape | None:
    """Return the shape of the same tensor in the nearest earlier block."""
    found = re.match(r"blk\.(\d+)\.(.+)", name)
    if found is None:
        return None
    return next((tensors[n] for i in reversed(range(int(found[1]))) if (n := f"blk.{i}.{found[2]}") in tensors), None)


class Starts(Protocol):
    """Loads a model with llama.cpp and returns the result."""

    def allocate(self, model: Path, flags: Sequence[str]) -> Allocation: ...


Write = Callable[[Path, TinyModel, Mapping[str, Shape]], Path]


def discover(
    model: TinyModel, bench: Starts, folder: Path, write: Write = write_model
) -> tuple[dict[str, Shape], Allocation]:
    """Return the tensors, and the server's last result: started, or an error unrelated to tensors."""
    tensors: dict[str, Shape] = dict(model.seeds)
    many = model.metadata["block_count"] > 24
    flags = ["-c", "256", "-np", "1"]
    row = ARCHITECTURES.get(model.architecture)
    if model.metadata.get("nextn_predict_layers") and row is not None and row.drafts:
        flags += ["--spec-type", "draft-mtp"]  # or the loader skips the tensors of those blocks
    path = run = folder / f"{model.name}.gguf"
    if model.target is not None:
        other = next(each for each in MODELS if each.name == model.target)
        run = write_model(folder / "target.gguf", other, read_table()[model.target])
        flags += ["-md", str(path), "--spec-type", SPECULATION[model.architecture]]
    for _ in range(ROUNDS):
        write(path, model, tensors or {"rope_freqs.weight": (1,)})
        answer = bench.allocate(run, flags)
        if (missing := MISSING.search(answer.output)) is not None:
            name = missing[1] or missing[2]
            if name in tensors:
                break
            tensors[name] = _like_the_layer_before(name, tensors) or (1,)
            if many and (block := re.match(r"blk\.(\d+)\.", name)) and int(block[1]) > 1:  # all blocks are alike
                before, this = f"blk.{int(block[1]) - 1}.", block[0]
                tensors |= {
                    this + old.removeprefix(before): tensors[old] for old in list(tensors) if old.startswith(before)
                }
        elif (wrong := SHAPE.search(answer.output)) is not None:
            shape = [int(n) for n in wrong[2].split(",")]
            while len(shape) > 1 and shape[-1] == 1:
                shape.pop()
            if tensors.get(wrong[1]) == tuple(shape):
                break
            tensors[wrong[1]] = tuple(shape)
        else:
            break
    return tensors, answer


def main(names: list[str]) -> int:
    """Exit status 1 if a model could not be loaded by the built llama-server, nor by newer builds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        library, port, record = preloaded_library(folder), free_port(), folder / "record.txt"
        failed = True
        for program in (llama_server, sid_llama_server, library_server):
            if failed:
                failed = _fill(TABLE, MODELS, Bench(program(), library, port, record), write_model, names)
        failed |= _fill(REAL_TABLE, REAL, NoAlloc(llama_server()), write_sparse, names)
    return 1 if failed else 0


def _fill(path: Path, models: Sequence[TinyModel], bench: Starts, write: Write, names: list[str]) -> bool:
    """Complete one table; True if a model could not be loaded."""
    table = read_table(path) if path.exists() else {}
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        table = {model.name: table[model.name] for model in models if model.name in table}
        for model in models:
            if model.name not in (names or [m.name for m in models if m.name not in table]):
                continue
            tensors, answer = discover(model, bench, folder, write)
            if answer.outcome == "started" or (answer.outcome == "aborted" and answer.tensors):
                table[model.name] = tensors
                path.write_text(format_table(table))
                print(f"{model.name}: {len(tensors)} tensors, {answer.total_bytes} bytes of cache", flush=True)
            else:
                failed = True
                tail = [line for line in answer.output.splitlines() if re.search(r" E |assert|rror|abort", line)][:4]
                print(
                    f"{model.name}: {answer.outcome} after {len(tensors)} tensors\n  " + "\n  ".join(tail), flush=True
                )
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
