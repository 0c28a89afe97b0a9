"""Classifies heads by their weights. All scores are shares of attention, 0 to 1, averaged over rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llamatel.explore.capture import Capture, LayerAttention

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LOCAL = 8
"""Tokens, itself included, that count as a head's neighbourhood."""
_EARLIEST = 2
"""Earlier rows see too few tokens to classify a head."""
_FEWEST = 4
"""Least number of rows for a score."""

KINDS = {
    "induction": "attends to the token that followed the previous occurrence of this token",
    "previous": "attends to the previous token",
    "current": "attends to the token itself",
    "first": "attends to the first token (a sink)",
    "sink": "attends to the sink outside of the sequence",
    "local": f"attends to the last {LOCAL} tokens",
    "uniform": "attends to all tokens equally",
    "mixed": "none of these",
}
"""Kinds of heads, with a description."""

_THRESHOLDS = (
    ("induction", 0.4), ("previous", 0.4), ("current", 0.4), ("first", 0.5), ("sink", 0.5), ("local", 0.8),
    ("uniform", 0.92),
)  # fmt: skip
"""Least score of each kind, the most specific first; the first that a head reaches is its kind."""


@dataclass(frozen=True, slots=True)
class HeadScores:
    """The scores of one head. None if the sequence does not show it: induction needs repeated tokens.

    ``first``: share of the first token. ``local``: of the last ``LOCAL`` tokens, in rows that see twice as many.
    ``sink``: 1 minus the row's sum. ``uniform``: entropy divided by that of a uniform distribution.
    """

    layer: int
    head: int
    previous: float | None
    current: float | None
    first: float | None
    local: float | None
    induction: float | None
    uniform: float | None
    entropy_bits: float | None
    sink: float

    @property
    def kind(self) -> str:
        """A key of ``KINDS``."""
        for kind, least in _THRESHOLDS:
            score = getattr(self, kind)
            if score is not None and score >= least:
                return kind
        return "mixed"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "kind": self.kind}


def head_scores(run: Capture) -> tuple[HeadScores, ...]:
    """Every captured head of every captured layer."""
    return tuple(score for layer in run.layers.values() for score in _layer_scores(run, layer))


def _layer_scores(run: Capture, layer: LayerAttention) -> list[HeadScores]:
    import numpy as np

    positions = np.array(run.rows)
    spread = _spread(layer, positions)
    follows = _followers(run)
    return [
        HeadScores(
            layer=layer.index,
            head=head,
            previous=_at(weights, positions, positions - 1),
            current=_at(weights, positions, positions),
            first=_at(weights, positions, np.zeros_like(positions)),
            local=_local(weights, positions),
            induction=_induction(weights, positions, follows),
            uniform=uniform,
            entropy_bits=bits,
            sink=float(np.clip(1 - weights.sum(1).mean(), 0, 1)) if layer.sinks else 0.0,
        )
        for head, weights, (uniform, bits) in zip(layer.heads, layer.weights, spread, strict=True)
    ]


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) >= _FEWEST else None


def _at(weights: npt.NDArray[np.float32], positions: npt.NDArray[Any], columns: npt.NDArray[Any]) -> float | None:
    import numpy as np

    chosen = np.flatnonzero(positions >= _EARLIEST)
    return _mean(weights[chosen, columns[chosen]])


def _local(weights: npt.NDArray[np.float32], positions: npt.NDArray[Any]) -> float | None:
    import numpy as np

    chosen = [row for row in range(len(positions)) if positions[row] + 1 >= 2 * LOCAL]
    return _mean(np.array([weights[row, positions[row] + 1 - LOCAL : positions[row] + 1].sum() for row in chosen]))


def _followers(run: Capture) -> dict[int, list[int]]:
    """By position: the positions after earlier occurrences of its token."""
    seen: dict[int, list[int]] = {}
    found: dict[int, list[int]] = {}
    for position, token in enumerate(run.token_ids):
        if token in seen:
            found[position] = [earlier + 1 for earlier in seen[token]]
        seen.setdefault(token, []).append(position)
    return found


def _induction(
    weights: npt.NDArray[np.float32], positions: npt.NDArray[Any], follows: dict[int, list[int]]
) -> float | None:
    """The share on tokens after earlier occurrences, without rows in which these are over a quarter of the tokens."""
    import numpy as np

    rows = [
        (row, [column for column in follows[position] if column < position])
        for row, position in enumerate(positions)
        if position in follows
    ]
    return _mean(
        np.array([weights[row, columns].sum() for row, columns in rows if 0 < 4 * len(columns) <= positions[row]])
    )


def _spread(layer: LayerAttention, positions: npt.NDArray[Any]) -> list[tuple[float | None, float | None]]:
    """By head: entropy as a share of that of a uniform distribution, and in bits."""
    import numpy as np

    chosen = np.flatnonzero(positions >= _EARLIEST)
    if len(chosen) < _FEWEST:
        return [(None, None)] * len(layer.heads)
    even = np.log2(np.maximum(layer.visible[chosen].sum(1), 2))
    spread: list[tuple[float | None, float | None]] = []
    for weights in layer.weights:
        shares = weights[chosen] / np.maximum(weights[chosen].sum(1, keepdims=True), 1e-30)
        bits = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
        spread.append((float((bits / even).mean()), float(bits.mean())))
    return spread
