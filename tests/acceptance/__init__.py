"""Long acceptance tests: ``make acceptance`` runs them and writes results to ``tests/acceptance/results/``.

A proof is a module of this package with a function ``run(folder: Path) -> dict[str, object]``, which returns its
figures and raises AssertionError if something that must hold does not.
"""

from __future__ import annotations

from collections.abc import Mapping


class ProofFailed(AssertionError):
    """A proof that failed, with the figures that it had measured."""

    def __init__(self, message: str, figures: Mapping[str, object]) -> None:
        super().__init__(message)
        self.figures = dict(figures)
