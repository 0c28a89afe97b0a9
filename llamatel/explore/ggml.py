"""Reads llama.cpp's tensors from a running graph, on any backend.

The layout of ``struct ggml_tensor`` (ggml/include/ggml.h) is not a stable interface, so ``Ggml`` creates tensors with
ggml's own functions and compares every field that it reads; a build that differs is refused.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple

from llamatel.errors import ExploreError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_F32, _F16, _BF16 = 0, 1, 30
_SOURCES = 10


class Tensor(ctypes.Structure):
    """``struct ggml_tensor``. ``ne`` are its lengths, the fastest dimension first; ``nb`` the strides in bytes."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * _SOURCES),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]

_Pointer = ctypes.POINTER(Tensor)


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class SoftMax(NamedTuple):
    """The parameters of a SOFT_MAX node: the factor of the scores, and the base of ALiBi's slope."""

    scale: float
    max_bias: float


class Ggml:
    """ggml's functions of a loaded llama.cpp. Raises ExploreError where the build is not understood."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        size, pointer, text = ctypes.c_size_t, _Pointer, ctypes.c_char_p
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "ggml_init": (ctypes.c_void_p, [_InitParams]),
            "ggml_free": (None, [ctypes.c_void_p]),
            "ggml_tensor_overhead": (size, []),
            "ggml_new_tensor_4d": (pointer, [ctypes.c_void_p, ctypes.c_int, *[ctypes.c_int64] * 4]),
            "ggml_permute": (pointer, [ctypes.c_void_p, pointer, *[ctypes.c_int] * 4]),
            "ggml_mul_mat": (pointer, [ctypes.c_void_p, pointer, pointer]),
            "ggml_soft_max_ext": (pointer, [ctypes.c_void_p, pointer, pointer, ctypes.c_float, ctypes.c_float]),
            "ggml_set_name": (pointer, [pointer, text]),
            "ggml_get_name": (text, [pointer]),
            "ggml_op_desc": (text, [pointer]),
            "ggml_nbytes": (size, [pointer]),
            "ggml_backend_tensor_get": (None, [pointer, ctypes.c_void_p, size, size]),
        }
        for name, (result, arguments) in signatures.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise ExploreError(f"this build of llama.cpp lacks {name}; {_OTHER_BUILD}") from None
            function.restype, function.argtypes = result, arguments
        self._check_layout()

    def _check_layout(self) -> None:
        lib = self._library
        context = lib.ggml_init(_InitParams(64 * lib.ggml_tensor_overhead(), None, True))
        if not context:
            raise ExploreError(f"ggml_init failed; {_OTHER_BUILD}")
        try:
            facts = self._facts(context)
        finally:
            lib.ggml_free(context)
        wrong = [what for what, (found, expected) in facts.items() if found != expected]
        if wrong:
            raise ExploreError(
                f"this build of llama.cpp lays its tensors out in another way ({', '.join(wrong)}); {_OTHER_BUILD}"
            )

    def _facts(self, context: int) -> dict[str, tuple[object, object]]:
        """By field: the value read through our layout, and the expected value."""
        lib = self._library
        # ggml_tensor_overhead() = the object's head (32 bytes) + the struct.
        facts: dict[str, tuple[object, object]] = {
            "size": (lib.ggml_tensor_overhead() - 32, ctypes.sizeof(Tensor)),
        }
        if facts["size"][0] != facts["size"][1]:
            return facts
        keys = lib.ggml_new_tensor_4d(context, _F16, 6, 5, 3, 1)
        queries = lib.ggml_new_tensor_4d(context, _F32, 6, 4, 3, 1)
        mask = lib.ggml_new_tensor_4d(context, _F32, 5, 4, 1, 1)
        scores = lib.ggml_mul_mat(context, keys, queries)
        soft = lib.ggml_soft_max_ext(context, scores, mask, 0.375, 0.0)
        turned = lib.ggml_permute(context, queries, 0, 2, 1, 3)
        lib.ggml_set_name(soft, b"kq_soft_max-17")
        address = _address
        return facts | {
            "type": ((keys.contents.type, queries.contents.type), (_F16, _F32)),
            "ne": ([*keys.contents.ne, *scores.contents.ne], [6, 5, 3, 1, 5, 4, 3, 1]),
            "nb": ([*keys.contents.nb], [2, 12, 60, 180]),
            "nb of a permuted tensor": ([*turned.contents.nb], [4, 96, 24, 288]),
            "op": (turned.contents.op != soft.contents.op and keys.contents.op == 0, True),
            "op_params": (self.soft_max(soft), SoftMax(0.375, 0.0)),
            "src": (
                [address(source) for source in (*soft.contents.src[:2], *scores.contents.src[:2])],
                [address(tensor) for tensor in (scores, mask, keys, queries)],
            ),
            "view_src": (address(turned.contents.view_src), address(queries)),
            "name": (soft.contents.name, lib.ggml_get_name(soft)),
        }

    def name(self, tensor: Any) -> str:
        """The tensor's name."""
        found: bytes = self._library.ggml_get_name(tensor)
        return found.decode(errors="replace")

    def operation(self, tensor: Any) -> str:
        """The operation: MUL_MAT, SOFT_MAX, ..."""
        found: bytes = self._library.ggml_op_desc(tensor)
        return found.decode(errors="replace")

    def soft_max(self, tensor: Any) -> SoftMax:
        """The parameters of a SOFT_MAX."""
        scale, bias = (ctypes.c_float * 2).from_buffer_copy(bytes(tensor.contents.op_params)[:8])
        return SoftMax(scale, bias)

    def read(self, tensor: Any, *, planes: range | None = None, rows: range | None = None) -> npt.NDArray[np.float32]:
        """The values of an F32, F16 or BF16 tensor: [n2, n1, n0], whatever its strides.

        ``planes`` (of n2) and ``rows`` (of n1) narrow down what is read. The fourth dimension must be 1.
        """
        import numpy as np

        t = tensor.contents
        item = {_F32: 4, _F16: 2, _BF16: 2}.get(t.type)
        if item is None or t.ne[3] != 1:
            raise ExploreError(
                f"{self.name(tensor)} has a form that is not understood (type {t.type}, {t.ne[3]} streams)"
            )
        planes = range(t.ne[2]) if planes is None else planes
        rows = range(t.ne[1]) if rows is None else rows
        # One copy a plane, or one in all where that is no more.
        span = (t.ne[0] - 1) * t.nb[0] + (len(rows) - 1) * t.nb[1] + item
        values = np.empty((len(planes), len(rows), t.ne[0]), np.float32)
        raw = np.empty(span, np.uint8)
        for number, plane in enumerate(planes):
            begin = plane * t.nb[2] + rows.start * t.nb[1]
            self._library.ggml_backend_tensor_get(tensor, raw.ctypes.data, begin, span)
            values[number] = _strided(raw, t.type, item, (len(rows), t.ne[0]), (t.nb[1], t.nb[0]))
        return values


def _strided(
    raw: npt.NDArray[np.uint8], kind: int, item: int, shape: tuple[int, int], strides: tuple[int, int]
) -> npt.NDArray[np.float32]:
    import numpy as np

    dtype = {_F32: np.float32, _F16: np.float16, _BF16: np.uint16}[kind]
    if item > 1 and len(raw) % item:
        raise ExploreError("a tensor's strides are not a multiple of its values")
    seen = np.lib.stride_tricks.as_strided(raw.view(dtype), shape, strides)
    if kind == _BF16:
        return (seen.astype(np.uint32) << 16).view(np.float32)
    return seen.astype(np.float32)


def _address(pointer: Any) -> int | None:
    return ctypes.cast(pointer, ctypes.c_void_p).value


def pointer(address: int) -> Any:
    """The tensor at an address, as a callback gets it."""
    return ctypes.cast(address, _Pointer)


_OTHER_BUILD = "install another: pip install llama-cpp-python==0.3.36"
