"""A fuzz target: a property of any input, valid initial inputs, and their mutations."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STORED = Path(__file__).parent / "corpus"
"""Inputs that atheris found, by target: one JSON text (Latin-1) per line."""
_KEPT_BYTES = 4096
_LONGEST_KEPT = 1024


class Broken(Exception):
    """A property was violated."""


def mutate_lines(data: bytes, others: Sequence[bytes], dice: random.Random) -> bytes:
    """A few random edits of text: characters, numbers, cuts, line ends within lines, pieces of other lines."""
    lines = data.split(b"\n")
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(lines))
        line = lines[at]
        place = dice.randrange(len(line) + 1)
        kind = dice.randrange(8)
        if kind == 0:
            lines[at] = line[:place] + bytes([dice.randrange(256)]) + line[place + 1 :]
        elif kind == 1:
            lines[at] = line[:place]
        elif kind == 2:
            lines[at] = line[:place] + b"\n" + line[place:]
        elif kind == 3:
            lines[at] = line[:place] + dice.choice(dice.choice(others).split(b"\n")) + line[place:]
        elif kind == 4:
            del lines[at]
            lines = lines or [b""]
        elif kind == 5:
            lines.insert(at, dice.choice(dice.choice(others).split(b"\n")))
        elif kind == 6:
            other = dice.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            digits = str(dice.choice((0, -1, 7, 999, 1 << 31, 1 << 63, 10**30, "9" * 300, "1e400", "nan"))).encode()
            lines[at] = line[:place] + digits + line[place:]
    return b"\n".join(lines)


@dataclass(frozen=True)
class Target:
    """One parser."""

    name: str
    check: Callable[[bytes], bool]
    """Raises if the property is violated; True if the input was accepted."""
    seeds: Callable[[], Sequence[bytes]]
    mutate: Callable[[bytes, Sequence[bytes], random.Random], bytes] = mutate_lines

    def corpus(self) -> list[bytes]:
        """The seeds, and the inputs found by coverage."""
        return [*self.seeds(), *stored(self.name)]


def structured(
    name: str,
    check: Callable[[bytes], bool],
    corpus: Callable[[], Sequence[bytes]],
    make: Callable[[random.Random, list[bytes]], bytes],
) -> Target:
    """A target with generated instead of mutated inputs."""
    return Target(name, check, corpus, lambda _, __, dice: make(dice, list(corpus())))


@cache
def stored(name: str) -> tuple[bytes, ...]:
    """The checked-in inputs of a target."""
    path = STORED / f"{name}.jsonl"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return tuple(json.loads(line).encode("latin-1") for line in lines)


def store(target: Target, folder: Path) -> int:
    """Check in those inputs of ``folder`` that reach code which the seeds do not; returns how many."""
    reached = {line for seed in target.seeds() for line in _lines_of(target, seed)}
    kept: list[bytes] = []
    for data in sorted((path.read_bytes() for path in folder.glob("*")), key=len):
        if len(data) > _LONGEST_KEPT or sum(map(len, kept)) + len(data) > _KEPT_BYTES:
            break
        lines = set(_lines_of(target, data))
        if not lines <= reached:
            reached |= lines
            kept.append(data)
    text = "".join(json.dumps(data.decode("latin-1")) + "\n" for data in kept)
    (STORED / f"{target.name}.jsonl").write_text(text, encoding="ascii")
    return len(kept)


def _lines_of(target: Target, data: bytes) -> Iterator[tuple[str, int, int]]:
    """Llamatel's transitions from line to line while an input is checked."""
    found: set[tuple[str, int, int]] = set()

    def trace(frame: object, event: str, _: object) -> object:
        code = frame.f_code  # type: ignore[attr-defined]
        if "llamatel" not in code.co_filename:
            return None
        last = [0]

        def local(frame: object, event: str, _: object) -> object:
            if event == "line":
                line = frame.f_lineno  # type: ignore[attr-defined]
                found.add((code.co_filename, last[0], line))
                last[0] = line
            return local

        return local

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        target.check(data)
    finally:
        sys.settrace(None)
    return iter(found)
