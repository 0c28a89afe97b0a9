"""Attention's matrices from the file: shape, type, norm, spectrum. One at a time, dequantised by gguf-py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamatel.errors import ExploreError, UsageError
from llamatel.explore.explore_child import Progress
from llamatel.explore.explore_request import MAX_BYTES
from llamatel.explore.picture import GROUPS, INK, Picture, new_figure, quiet
from llamatel.gguf.header import GGUFHeader, TensorInfo
from llamatel.plan.model_report import ModelReport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_COPIES = 4
"""Memory in copies of the f32 matrix: itself and what the decomposition needs."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix. ``role``: q, k, v, o, or qkv. ``shape``: outputs × inputs. ``spectrum``: singular values, falling."""

    layer: int
    role: str
    name: str
    shape: tuple[int, int]
    type: str
    n_bytes: int
    norm: float
    """Frobenius: the root of the sum of squares."""
    spectrum: npt.NDArray[np.float32]

    @property
    def effective_rank(self) -> float:
        """(sum of squares)² / sum of fourth powers of the singular values."""
        squares = self.spectrum.astype(float) ** 2
        return float(squares.sum() ** 2 / (squares**2).sum()) if squares.any() else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layer": self.layer, "role": self.role, "name": self.name, "shape": list(self.shape), "type": self.type,
            "n_bytes": self.n_bytes, "norm": self.norm, "effective_rank": self.effective_rank,
            "largest_singular_value": float(self.spectrum[0]), "smallest_singular_value": float(self.spectrum[-1]),
            "spectrum": [float(value) for value in self.spectrum],
        }  # fmt: skip


def matrices(
    report: ModelReport,
    layers: Sequence[int] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> Iterator[Matrix]:
    """The matrices of the chosen layers, one after the other; one at a time is in memory.

    Raises UsageError where the largest needs more than ``max_bytes``, ExploreError for a type gguf-py cannot read.
    """
    if report.header is None or report.header.tensors is None:
        raise UsageError("matrices are read from a GGUF file on this machine")
    there = report.projections
    wrong = sorted(set(layers or ()) - set(there))
    if wrong:
        raise UsageError(f"layer {wrong[0]} has no attention matrices")
    chosen = [
        (layer, role, tensor)
        for layer in sorted(there)
        if layers is None or layer in layers
        for role in ("q", "k", "v", "o", "qkv")
        for tensor in there[layer].get(role, ())
        if len(tensor.shape) == 2
    ]
    needed = max((_COPIES * 4 * tensor.n_elements for _, _, tensor in chosen), default=0)
    if needed > max_bytes:
        raise UsageError(f"the largest matrix needs {needed:,} bytes, more than --max-bytes {max_bytes:,}")
    for number, (layer, role, tensor) in enumerate(chosen):
        if progress is not None:
            progress("decomposing matrices", number, len(chosen))
        yield _matrix(report.header, layer, role, tensor)


def read_tensor(header: GGUFHeader, tensor: TensorInfo) -> npt.NDArray[np.float32]:
    """A tensor's values as f32, outputs × inputs."""
    import gguf
    import numpy as np

    if header.big_endian or header.data_offsets is None or tensor.n_bytes is None:
        raise ExploreError(f"{tensor.name} cannot be read: its type or byte order is not understood")
    begin = header.data_offsets[tensor.shard] + tensor.offset
    try:
        raw = np.memmap(header.files[tensor.shard], np.uint8, "r", begin, (tensor.n_bytes,))
        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[tensor.type])
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ExploreError(f"{tensor.name} ({tensor.type}) cannot be read: {error}") from None
    return np.asarray(values, np.float32).reshape(tensor.shape[::-1])


def _matrix(header: GGUFHeader, layer: int, role: str, tensor: TensorInfo) -> Matrix:
    import numpy as np

    values = read_tensor(header, tensor)
    spectrum = np.linalg.svd(values, compute_uv=False)
    return Matrix(
        layer=layer,
        role=role,
        name=tensor.name,
        shape=(values.shape[0], values.shape[1]),
        type=tensor.type,
        n_bytes=tensor.n_bytes or 0,
        norm=float(np.linalg.norm(values)),
        spectrum=spectrum,
    )


def spectra_picture(found: Sequence[Matrix], name: str) -> Picture:
    """Singular values by rank, each as a share of the largest: a plot for each role, a line for each layer."""
    import numpy as np

    roles = [role for role in ("q", "k", "v", "o", "qkv") if any(matrix.role == role for matrix in found)]
    if not roles:
        raise UsageError("the model has no attention matrices")
    layers = sorted({matrix.layer for matrix in found})
    figure = new_figure(2.7 * len(roles) + 0.6, 2.7)
    for place, role in enumerate(roles):
        axes: Any = figure.add_subplot(1, len(roles), place + 1)
        for matrix in (matrix for matrix in found if matrix.role == role):
            shade = 0.25 + 0.75 * layers.index(matrix.layer) / max(len(layers) - 1, 1)
            shares = matrix.spectrum / max(float(matrix.spectrum[0]), 1e-30)
            axes.plot(np.arange(1, len(shares) + 1), shares, color=GROUPS[place], alpha=shade, lw=1.3)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("rank")
        quiet(axes)
        axes.set_title(role.upper(), fontsize=10, color=INK, loc="left")
        if place == 0:
            axes.set_ylabel("singular value / largest")
    figure.suptitle(f"{name}: spectra of the attention matrices, later layers darker", fontsize=9, color=INK)
    return Picture(figure, "Spectra of Q, K, V and O", f"{name}_spectra")
