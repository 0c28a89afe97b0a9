"""Tensor overrides, which choose a device by tensor name: ``-ot``, ``--cpu-moe``, ``--n-cpu-moe``, ``--n-cpu-ffn``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
DENSE = r"\.ffn_(up|down|gate)\."
"""LLM_FFN_EXPS_REGEX and LLM_FFN_DENSE_REGEX (common/common.h)."""
HOST = "CPU"
"""The buffer type of host memory."""


class TensorOverride(NamedTuple):
    """Tensors whose name matches go into ``buffer``. The first override that matches a tensor counts."""

    pattern: str
    """A regular expression, searched for in the name."""
    buffer: str = HOST
    first_blocks: int | None = None
    """Only tensors of this many first blocks."""

    def matches(self, name: str) -> bool:
        """Whether it applies to the tensor ``name``."""
        found = _compiled(self.pattern if self.first_blocks is None else rf"blk\.(?P<block>\d+){self.pattern}")
        match = found.search(name)
        return match is not None and (self.first_blocks is None or int(match["block"]) < self.first_blocks)

    @property
    def is_cheap(self) -> bool:
        """Whether an untrusted pattern is safe to search for: no group is repeated, and little else."""
        dangerous = re.search(r"\)[*+{]|\(\?|\\\d", self.pattern)
        return len(self.pattern) <= 256 and dangerous is None and len(re.findall("[*+{]", self.pattern)) <= 3

    @property
    def flag(self) -> str:
        """As llama-server's command line has it."""
        if self.first_blocks is not None and self.buffer == HOST:
            return f"{'-ncmoe' if self.pattern == EXPERTS else '-ncffn'} {self.first_blocks}"
        return "-cmoe" if self == TensorOverride(EXPERTS) else f"-ot {self.pattern}={self.buffer}"


@lru_cache(64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
