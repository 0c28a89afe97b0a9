"""The types that llama-server accepts for K and V (common/arg.cpp:304) and the bytes of a row (ggml_row_size)."""

from __future__ import annotations

from typing import NamedTuple


class CacheType(NamedTuple):
    """``block`` values in ``n_bytes`` bytes."""

    block: int
    n_bytes: int

    @property
    def quantised(self) -> bool:
        """Whether values are stored in blocks of more than one."""
        return self.block > 1

    def row_bytes(self, values: int) -> int:
        """The bytes of one cell; ``values`` fill whole blocks."""
        return values // self.block * self.n_bytes


CACHE_TYPES: dict[str, CacheType] = {
    "f32": CacheType(1, 4),
    "f16": CacheType(1, 2),
    "bf16": CacheType(1, 2),
    "q8_0": CacheType(32, 34),
    "q5_1": CacheType(32, 24),
    "q5_0": CacheType(32, 22),
    "q4_1": CacheType(32, 20),
    "q4_0": CacheType(32, 18),
    "iq4_nl": CacheType(32, 18),
}
