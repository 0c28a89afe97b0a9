"""Fuzz the GGUF reader: ``python -m tests.fuzz --seconds 60``, with ``--atheris`` guided by coverage (its package).

Without that, mutations of valid files of every version and byte order. Prints how many inputs were tried and how
many of them were read; ends with 1 and the input, written to a file, when a promise was broken.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.gguf_header import check
from tests.gguf_files import ARRAY, STRING, U32, Writer, sample

_NUMBERS = (0, 1, 2, 7, 8, 9, 13, 31, 32, 255, 256, 512, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, 1 << 63, -1)


def corpus() -> list[bytes]:
    """Valid files to start from."""
    files = [sample(version, order) for version in (1, 2, 3) for order in "<>"]
    write = Writer()
    names = ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "context_length")
    for architecture in ("llama", "gemma3", "deepseek2", "jamba", "qwen3next", "nanbeige"):
        keys = [write.key("general.architecture", STRING, architecture)]
        keys += [write.key(f"{architecture}.{name}", U32, 4) for name in names]
        keys.append(write.key(f"{architecture}.attention.key_length", ARRAY, (U32, (4, 4, 0, 1))))
        keys.append(write.key("tokenizer.ggml.tokens", ARRAY, (STRING, ("a", "bc", "") * 9)))
        files.append(write.file(keys, [write.tensor("blk.0.attn_q.weight", (32, 4), 8, 0)], data=160))
    return files


def mutate(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """A few random edits: bytes, numbers that matter, cuts, repeats, splices."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 5)):
        at = dice.randrange(len(changed) + 1)
        kind = dice.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] = dice.randrange(256)
        elif kind == 1:
            size = dice.choice((1, 4, 4, 8, 8))
            number = dice.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            changed[at : at + size] = number.to_bytes(size, dice.choice(("little", "big")))
        elif kind == 2:
            del changed[at : at + dice.randint(1, 30)]
        elif kind == 3:
            changed[at:at] = dice.randbytes(dice.randint(1, 20))
        elif kind == 4:
            changed[at:at] = changed[at : at + dice.randint(1, 200)]
        elif kind == 5 and dice.random() < 0.3:
            other = dice.choice(others)
            changed[at:] = other[dice.randrange(len(other)) :]
    return bytes(changed)


def _mutations(seconds: float, seed: int) -> int:
    files, dice = corpus(), random.Random(seed)
    tried = read = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutate(dice.choice(files), files, dice)
        try:
            read += check(data)
        except Exception:
            path = Path(f"fuzz-broken-{seed}-{tried}.gguf")
            path.write_bytes(data)
            print(f"broken by input {tried} of seed {seed}, kept in {path}")
            raise
        tried += 1
    print(f"{tried} mutated files, {read} of them read, {tried - read} refused, none broke a promise (seed {seed})")
    return 0


def _atheris(seconds: float, folder: Path) -> int:
    atheris: Any = importlib.import_module("atheris")  # in no lock file: it has no wheels for every Python

    with atheris.instrument_imports(include=["llamatel"]):
        for name in [name for name in sys.modules if name.startswith(("llamatel", "tests.fuzz.gguf"))]:
            del sys.modules[name]
        from tests.fuzz.gguf_header import check as instrumented

    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus()):
        (folder / f"seed-{number}").write_bytes(data)
    flags = [
        f"-max_total_time={int(seconds)}",
        "-max_len=8192",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-verbosity=0",
        "-print_final_stats=1",  # number_of_executed_units is how many files were tried
    ]
    atheris.Setup([sys.argv[0], *flags, str(folder)], lambda data: (instrumented(data), None)[1])
    atheris.Fuzz()
    return 0


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the GGUF reader.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz-corpus"), help="atheris keeps its finds here")
    options = parser.parse_args()
    if options.atheris:
        return _atheris(options.seconds, options.corpus)
    return _mutations(options.seconds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
