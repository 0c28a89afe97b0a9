"""A fuzz target: a property of any input, valid initial inputs, and their mutations."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class Broken(Exception):
    """A property was violated."""


@dataclass(frozen=True)
class Target:
    """One parser."""

    name: str
    check: Callable[[bytes], bool]
    """Raises if the property is violated; True if the input was accepted."""
    corpus: Callable[[], Sequence[bytes]]
    mutate: Callable[[bytes, Sequence[bytes], random.Random], bytes]
    instrumented: str
    """The module used for coverage (``module:function``), imported again under atheris."""


def structured(
    name: str,
    check: Callable[[bytes], bool],
    corpus: Callable[[], Sequence[bytes]],
    make: Callable[[random.Random, list[bytes]], bytes],
    module: str,
) -> Target:
    """A target with generated instead of mutated inputs."""
    return Target(name, check, corpus, lambda _, others, dice: make(dice, list(others)), f"tests.fuzz.{module}:check")


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
