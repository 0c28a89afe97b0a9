"""Reading a GGUF's header: ours and gguf-py's GGUFReader, on the same file in the same run.

The file is the largest vocabulary of llama.cpp's own tests (262,144 tokens and 514,906 merges), or one made here where
llama.cpp's source is not at hand. Alone: ``make bench ARGS="--only header"``.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf

from llamatel.llama import parse_gguf_header
from tests.gguf_files import ARRAY, STRING, U32, Writer
from tests.parts import vocabularies


@dataclass(frozen=True, slots=True)
class HeaderFigures:
    """Times of one reading, tensors included; gguf-py is timed once, after half of our readings."""

    file: str
    file_bytes: int
    strings: int
    """Tokens and merges in it."""
    ours_ms: float
    """Wall clock, the median."""
    ours_best_ms: float
    ours_cpu_ms: float
    """CPU time, the median."""
    gguf_py_ms: float
    gguf_py_cpu_ms: float
    peak_kib: float
    """The most memory that ours held at once (tracemalloc)."""

    @property
    def ratio(self) -> float:
        """How many times faster, by the wall clock's medians."""
        return self.gguf_py_ms / self.ours_ms

    @property
    def cpu_ratio(self) -> float:
        """The same by CPU time, which a busy machine disturbs less."""
        return self.gguf_py_cpu_ms / self.ours_cpu_ms

    def lines(self) -> list[str]:
        """For people."""
        ours = f"{self.ours_ms:9.1f} ms median, {self.ours_best_ms:.1f} ms best, {self.ours_cpu_ms:.1f} ms CPU"
        return [
            f"  {self.file}: {self.file_bytes / 2**20:.1f} MiB, {self.strings:,} strings",
            f"  llamatel  {ours}, {self.peak_kib:,.0f} KiB",
            f"  gguf-py   {self.gguf_py_ms:9.1f} ms, {self.gguf_py_cpu_ms:.1f} ms CPU",
            f"  {self.ratio:.0f} times faster ({self.cpu_ratio:.0f} by CPU time)",
        ]


def make_vocabulary(path: Path, tokens: int = 262_144) -> Path:
    """A file with a vocabulary of that size, and nothing else."""
    write = Writer()
    words = tuple(f"word{number}" for number in range(tokens))
    merges = tuple(f"wo{number} rd" for number in range(tokens))
    keys = [
        write.key("general.architecture", STRING, "llama"),
        write.key("llama.block_count", U32, 1),
        write.key("tokenizer.ggml.tokens", ARRAY, (STRING, words)),
        write.key("tokenizer.ggml.scores", ARRAY, (6, (0.0,) * tokens)),
        write.key("tokenizer.ggml.token_type", ARRAY, (5, (1,) * tokens)),
        write.key("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
    ]
    path.write_bytes(write.file(keys))
    return path


def _timed(read: Callable[[], object]) -> tuple[float, float]:
    """Wall clock and CPU time in ms."""
    wall, cpu = time.perf_counter(), time.process_time()
    read()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def measure(path: Path, readings: int = 20) -> HeaderFigures:
    """Read ``path`` with both."""
    metadata = parse_gguf_header(path).metadata
    arrays = [metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges")]
    times = [_timed(lambda: parse_gguf_header(path, read_tensors=True)) for _ in range(readings // 2)]
    gc.collect()
    theirs = _timed(lambda: gguf.GGUFReader(path))
    gc.collect()
    times += [_timed(lambda: parse_gguf_header(path, read_tensors=True)) for _ in range(readings - readings // 2)]
    tracemalloc.start()
    parse_gguf_header(path, read_tensors=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return HeaderFigures(
        file=path.name,
        file_bytes=path.stat().st_size,
        strings=sum(len(array) for array in arrays if array is not None and hasattr(array, "__len__")),
        ours_ms=statistics.median(wall for wall, _ in times),
        ours_best_ms=min(wall for wall, _ in times),
        ours_cpu_ms=statistics.median(cpu for _, cpu in times),
        gguf_py_ms=theirs[0],
        gguf_py_cpu_ms=theirs[1],
        peak_kib=peak / 1024,
    )


def measure_default(readings: int = 20) -> HeaderFigures:
    """The largest real vocabulary at hand, or a made one."""
    real = max(vocabularies(), key=lambda path: path.stat().st_size, default=None)
    if real is not None:
        return measure(real, readings)
    with tempfile.TemporaryDirectory() as folder:
        return measure(make_vocabulary(Path(folder) / "vocabulary.gguf"), readings)
