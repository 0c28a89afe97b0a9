"""Long proofs: ``make acceptance`` runs them, ``tests/acceptance/results/`` keeps what they found.

A proof is a module of this package with a function ``run(folder: Path) -> dict[str, object]``, which returns its
figures and raises AssertionError if something that must hold does not.
"""
