"""Observes llama.cpp's graph and keeps the inputs and weights of attention: queries, keys, values.

``build_attn_mha`` (src/llama-graph.cpp) names its nodes ``kq-{layer}``, ``kq_soft_max-{layer}`` and ``kqv-{layer}``
without flash attention. A node's sources are still allocated when it has just been computed: queries and keys are read
as sources of ``kq`` (with rotation, norms and scaling applied, the keys from the cache), values as sources of ``kqv``.
That holds for every architecture that uses this function, whatever the names of its projections.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamatel.explore.ggml import Ggml, pointer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NODE = re.compile(r"(kq|kq_soft_max|kqv)-(\d+)$")


@dataclass(slots=True)
class LayerRecord:
    """One layer in one pass over ``n`` new tokens with ``m`` in the cache: arrays, heads first."""

    weights: npt.NDArray[np.float32] | None = None
    """Heads × n × m."""
    queries: npt.NDArray[np.float32] | None = None
    keys: npt.NDArray[np.float32] | None = None
    values: npt.NDArray[np.float32] | None = None
    visible: npt.NDArray[np.bool_] | None = None
    """n × m: positions that the mask allows."""
    scale: float | None = None
    max_bias: float = 0.0
    softcapped: bool = False
    sinks: bool = False
    heads_in_all: int = 0
    kv_heads: int = 0


@dataclass(slots=True)
class Observer:
    """A ``cb_eval``. ``heads`` and ``rows`` (of the pass) narrow what is kept; ``wanted`` are layers.

    ``failure`` is the error in a callback: an exception never crosses into C. The graph is then computed to its
    end unobserved.
    """

    ggml: Ggml
    wanted: frozenset[int]
    heads: tuple[int, ...] | None = None
    first_row: int = 0
    """Rows of this pass before it are not kept."""
    tokens: int = 0
    """Tokens in the cache after this pass; cells after them are empty."""
    layers: dict[int, LayerRecord] = field(default_factory=dict)
    failure: Exception | None = None

    def __call__(self, address: int, query: bool, _user_data: object) -> bool:
        """Whether a node's data is needed (``query``), or the data itself, after which true goes on."""
        try:
            if self.failure is not None:
                return not query
            tensor = pointer(address)
            found = _NODE.match(self.ggml.name(tensor))
            if found is None or int(found[2]) not in self.wanted:
                return not query
            if not query:
                self._keep(found[1], int(found[2]), tensor)
        except Exception as error:  # noqa: BLE001 - the boundary to C
            self.failure = error
        return True

    def begin(self, first_row: int, tokens: int) -> None:
        """Before each pass."""
        self.layers = {}
        self.first_row, self.tokens = first_row, tokens

    def _keep(self, what: str, layer: int, tensor: Any) -> None:
        record = self.layers.setdefault(layer, LayerRecord())
        if what == "kq":
            keys, queries = tensor.contents.src[0], tensor.contents.src[1]
            record.heads_in_all, record.kv_heads = queries.contents.ne[2], keys.contents.ne[2]
            record.queries = self._rows(queries)
            record.keys = self.ggml.read(keys, rows=range(self.tokens))
        elif what == "kq_soft_max":
            record.weights = self._rows(tensor)[:, :, : self.tokens]
            record.scale, record.max_bias = self.ggml.soft_max(tensor)
            scores, mask = tensor.contents.src[0], tensor.contents.src[1]
            record.softcapped = self.ggml.operation(scores) != "MUL_MAT"
            record.sinks = bool(tensor.contents.src[2])
            if mask:
                seen = self.ggml.read(mask, planes=range(1), rows=range(self.first_row, mask.contents.ne[1]))
                record.visible = seen[0, : record.weights.shape[1], : self.tokens] > -1e30
        else:
            # Values are transposed: value length × cells × heads.
            values = self.ggml.read(tensor.contents.src[0])
            record.values = values[:, :, : self.tokens].transpose(0, 2, 1).copy()

    def _rows(self, tensor: Any) -> npt.NDArray[np.float32]:
        """The chosen rows and heads of a tensor of heads × tokens × values."""
        import numpy as np

        rows = range(self.first_row, tensor.contents.ne[1])
        if self.heads is None:
            return self.ggml.read(tensor, rows=rows)
        chosen = [head for head in self.heads if head < tensor.contents.ne[2]]
        return np.concatenate([self.ggml.read(tensor, planes=range(head, head + 1), rows=rows) for head in chosen])


def why_missing(records: Mapping[int, LayerRecord], layer: int, *, attends: bool, recurrent: bool) -> str | None:
    """Why a layer has no attention map; None if it has one."""
    if layer in records and records[layer].weights is not None:
        return None
    if recurrent and not attends:
        return "recurrent: it keeps a state and attends to nothing"
    if not attends:
        return "it does not attend"
    return "not understood: llama.cpp computed no kq_soft_max here"
