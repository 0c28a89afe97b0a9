"""Measures the time of the next token with and without a KV cache, by sequence length."""

from __future__ import annotations

import time

from llamatel.explore.explore_session import Context, Progress, Session

_REPEATS = 3
_POINTS = 8
_DRAWN = 64


def lengths(longest: int) -> list[int]:
    """The sequence lengths that are measured: evenly spread, ``longest`` the last."""
    return sorted({max(longest * point // _POINTS, 1) for point in range(1, _POINTS + 1)})


def measure(
    model: str,
    *,
    longest: int,
    threads: int | None = None,
    gpu_layers: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """By number of tokens: seconds for the next token with the cache, and without (all tokens computed again).

    The best of three each, on this machine, without flash attention.
    """
    rows: list[dict[str, float]] = []
    points = lengths(longest)
    with Session(model, gpu_layers=gpu_layers) as session:
        drawn = session.random_tokens(min(longest, _DRAWN), 0)
        tokens = (drawn * (longest // len(drawn) + 2))[: longest + 1]
        with session.context(longest + 1, threads=threads) as context:
            context.decode(tokens[:2])  # warm-up
            for number, length in enumerate(points):
                if progress is not None:
                    progress("measuring", number, len(points))
                without = min(_recomputed(context, tokens[: length + 1]) for _ in range(_REPEATS))
                with_cache = min(_cached(context, tokens[: length + 1]) for _ in range(_REPEATS))
                rows.append({"tokens": length, "with_cache_s": with_cache, "without_cache_s": without})
    return rows


def _recomputed(context: Context, tokens: tuple[int, ...]) -> float:
    context.forget()
    start = time.perf_counter()
    context.decode(tokens)
    return time.perf_counter() - start


def _cached(context: Context, tokens: tuple[int, ...]) -> float:
    context.forget()
    context.decode(tokens[:-1])
    start = time.perf_counter()
    context.decode(tokens[-1:])
    return time.perf_counter() - start
