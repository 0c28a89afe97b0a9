"""llama.cpp's own performance counters of a context (``llama_perf_context``, include/llama.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Counters:
    """Work of a context since its counters were reset: batches of several tokens, and of one."""

    seconds: float
    tokens: int

    def since(self, before: Counters) -> Counters:
        """The difference of two readings."""
        return Counters(self.seconds - before.seconds, self.tokens - before.tokens)


ZERO = Counters(0.0, 0)


def read(llama: Any) -> Counters | None:
    """The current counters; None if the context does not measure (``no_perf``), or is closed.

    Call it on the thread that uses the context. llama.cpp reports 1 for a count of 0 (src/llama-context.cpp,
    ``perf_get_data``); a count with zero time is 0.
    """
    import llama_cpp

    context = getattr(llama._ctx, "ctx", None)
    if context is None or llama.context_params.no_perf:
        return None
    data = llama_cpp.llama_perf_context(context)
    several = data.n_p_eval if data.t_p_eval_ms else 0
    single = data.n_eval if data.t_eval_ms else 0
    return Counters((data.t_p_eval_ms + data.t_eval_ms) / 1e3, several + single)
