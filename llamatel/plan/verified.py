"""The builds of llama.cpp whose cache sizes were compared with ours, by architecture.

``make verify`` starts every build at hand on the models of its suite and writes the ranges: of numbers of builds that
were compared one after another, all rows equal. Builds between the two ends of a range are taken to be alike.
"""

from __future__ import annotations

from functools import cache

from llamatel.plan.architectures import Architecture
from llamatel.plan.llama_build import LlamaBuild

Ranges = tuple[tuple[int, int], ...]

_RANGES = """
"""


@cache
def _by_architecture() -> dict[str, Ranges]:
    found: dict[str, Ranges] = {}
    for line in _RANGES.strip().splitlines():
        spans, _, names = line.partition(": ")
        ends = (span.split("-") for span in spans.split())
        ranges = tuple((int(each[0]), int(each[-1])) for each in ends)
        found |= dict.fromkeys(names.split(), ranges)
    return found


def verified_builds(architecture: str) -> Ranges:
    """First and last numbers of builds, oldest first; () for an architecture that was not compared."""
    return _by_architecture().get(architecture, ())


def newest_verified() -> int | None:
    """The newest build that was compared."""
    return max((ranges[-1][1] for ranges in _by_architecture().values()), default=None)


def is_verified(row: Architecture, build: LlamaBuild | None) -> bool:
    """Whether ``build`` is one of those that were compared; None is the newest of them.

    A build without a number counts where all builds that know the architecture are alike.
    """
    ranges = verified_builds(row.name)
    if not ranges:
        return False
    if build is not None and build.number is not None:
        return any(first <= build.number <= last for first, last in ranges)
    newest = ranges[-1][1] == newest_verified()
    return newest and (build is None or (len(ranges) == 1 and not row.earlier))


def in_words(ranges: Ranges) -> str:
    """``b7376 to b10229, b11063 to b11669``."""
    return ", ".join(f"b{first}" if first == last else f"b{first} to b{last}" for first, last in ranges)
