"""The ggml tensor types and the GGUF file types, by number.

Source: llama.cpp, October 2026: ``ggml/src/ggml.c`` (type_traits), ``ggml/src/ggml-common.h`` (block sizes) and
``include/llama.h`` (llama_ftype).
"""

from __future__ import annotations

from typing import NamedTuple


class TensorType(NamedTuple):
    """How ggml stores numbers: ``block`` values in ``n_bytes`` bytes. A type that ggml removed has a block of 0."""

    number: int
    name: str
    block: int
    n_bytes: int

    @property
    def bits(self) -> float | None:
        """Bits a value; None for a removed type."""
        return self.n_bytes * 8 / self.block if self.block else None

    def row_bytes(self, values: int) -> int | None:
        """The bytes of a row (ggml_row_size); None if ``values`` do not fill whole blocks, or for a removed type."""
        if not self.block or values % self.block:
            return None
        return values // self.block * self.n_bytes


_TYPES = (
    TensorType(0, "F32", 1, 4),
    TensorType(1, "F16", 1, 2),
    TensorType(2, "Q4_0", 32, 18),
    TensorType(3, "Q4_1", 32, 20),
    TensorType(4, "Q4_2", 0, 0),
    TensorType(5, "Q4_3", 0, 0),
    TensorType(6, "Q5_0", 32, 22),
    TensorType(7, "Q5_1", 32, 24),
    TensorType(8, "Q8_0", 32, 34),
    TensorType(9, "Q8_1", 32, 36),
    TensorType(10, "Q2_K", 256, 84),
    TensorType(11, "Q3_K", 256, 110),
    TensorType(12, "Q4_K", 256, 144),
    TensorType(13, "Q5_K", 256, 176),
    TensorType(14, "Q6_K", 256, 210),
    TensorType(15, "Q8_K", 256, 292),
    TensorType(16, "IQ2_XXS", 256, 66),
    TensorType(17, "IQ2_XS", 256, 74),
    TensorType(18, "IQ3_XXS", 256, 98),
    TensorType(19, "IQ1_S", 256, 50),
    TensorType(20, "IQ4_NL", 32, 18),
    TensorType(21, "IQ3_S", 256, 110),
    TensorType(22, "IQ2_S", 256, 82),
    TensorType(23, "IQ4_XS", 256, 136),
    TensorType(24, "I8", 1, 1),
    TensorType(25, "I16", 1, 2),
    TensorType(26, "I32", 1, 4),
    TensorType(27, "I64", 1, 8),
    TensorType(28, "F64", 1, 8),
    TensorType(29, "IQ1_M", 256, 56),
    TensorType(30, "BF16", 1, 2),
    TensorType(31, "Q4_0_4_4", 0, 0),
    TensorType(32, "Q4_0_4_8", 0, 0),
    TensorType(33, "Q4_0_8_8", 0, 0),
    TensorType(34, "TQ1_0", 256, 54),
    TensorType(35, "TQ2_0", 256, 66),
    TensorType(36, "IQ4_NL_4_4", 0, 0),
    TensorType(37, "IQ4_NL_4_8", 0, 0),
    TensorType(38, "IQ4_NL_8_8", 0, 0),
    TensorType(39, "MXFP4", 32, 17),
    TensorType(40, "NVFP4", 64, 36),
    TensorType(41, "Q1_0", 128, 18),
    TensorType(42, "Q2_0", 64, 18),
)

TENSOR_TYPES: dict[int, TensorType] = {each.number: each for each in _TYPES}
"""By the number in the file."""

TENSOR_TYPES_BY_NAME: dict[str, TensorType] = {each.name: each for each in _TYPES}
"""By name in capitals: ``Q4_K``."""

REMOVED_TYPES: frozenset[str] = frozenset(each.name for each in _TYPES if not each.block)
"""Types that llama.cpp removed: it does not load a file that has a tensor of one."""


def unknown_type(name: str) -> str:
    """A description of a tensor type of unknown size: ``type 337 (of ik_llama.cpp)``."""
    if name in REMOVED_TYPES:
        number = TENSOR_TYPES_BY_NAME[name].number
        also = ", in which bitnet.cpp stores i2_s" if number == 36 else ""
        return f"{name} ({number}, removed from llama.cpp{also})"
    number = int(name.removeprefix("type ")) if name.removeprefix("type ").isdecimal() else 0
    return f"{name} (of ik_llama.cpp)" if 133 <= number <= 158 or 200 <= number <= 399 else name


FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""``general.file_type``: the type of most of the file's matrices."""
_GUESSED = 1024
"""LLAMA_FTYPE_GUESSED: llama.cpp's loader derived the type from the tensors."""


def file_type_name(value: object) -> str | None:
    """The name of a ``general.file_type``, ``Q4_K_M``; None if absent or unknown."""
    return FILE_TYPES.get(value & ~_GUESSED) if isinstance(value, int) else None
