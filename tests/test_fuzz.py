"""A few seconds of each fuzz target; ``make fuzz`` runs them for longer, and guided by coverage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.__main__ import TARGETS
from tests.fuzz.target import Target

FOUND = Path(__file__).parent / "fuzz" / "found"
INPUTS = 150


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_fuzz_target_properties_hold(target: Target) -> None:
    seeds, dice = target.corpus(), random.Random(7)
    accepted = [target.check(seed) for seed in seeds]
    accepted += [target.check(target.mutate(dice.choice(seeds), seeds, dice)) for _ in range(INPUTS)]
    assert any(accepted)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*")), ids=lambda path: path.name)
def test_fuzz_regressions(path: Path) -> None:
    """Inputs that once violated a property, named after their target."""
    TARGETS[path.name.partition(".")[0]].check(path.read_bytes())
