"""The result of a capture: tokens, and per layer the attention that llama.cpp computed, as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatel.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_ARRAYS = ("weights", "queries", "keys", "values", "visible")


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """One layer over T tokens, of which R have rows (see ``Capture.rows``).

    ``weights``: heads × R × T, each row the shares of a position's attention; they sum to 1, or to less where the model
    has attention sinks. ``queries``: heads × R × key length; ``keys``, ``values``: KV heads × T × length; all as
    attention used them: rotated, normed, the keys and values out of the cache. ``visible``: R × T, the mask.
    ``scale``: what scores are multiplied with before the softmax.
    """

    index: int
    heads: tuple[int, ...]
    """The query heads in the arrays, in order."""
    heads_in_all: int
    kv_heads: int
    weights: npt.NDArray[np.float32]
    queries: npt.NDArray[np.float32]
    keys: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    visible: npt.NDArray[np.bool_]
    scale: float
    max_bias: float = 0.0
    softcapped: bool = False
    sinks: bool = False
    latent: bool = False
    """Whether keys are the latent vector that all heads share (MLA, absorbed)."""

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.heads_in_all // self.kv_heads

    def kv_head(self, head: int) -> int:
        """The KV head that a query head reads."""
        return head // self.group_size

    def head(self, head: int) -> npt.NDArray[np.float32]:
        """One head's weights, R × T. Raises UsageError where it was not captured."""
        if head not in self.heads:
            raise UsageError(f"layer {self.index} has no captured head {head}: {_span(self.heads)}")
        found: npt.NDArray[np.float32] = self.weights[self.heads.index(head)]
        return found


@dataclass(frozen=True, slots=True)
class Capture:
    """One forward pass (and the tokens generated after it).

    ``texts`` are the tokens as text, ``prompt_tokens`` how many were given; ``rows`` the positions that have a row.
    ``missing``: by layer, why it has no map.
    """

    model: str
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    prompt_tokens: int
    rows: range
    layers: Mapping[int, LayerAttention]
    missing: Mapping[int, str]
    llama_cpp: str = ""
    cache_type: str = "f16"
    seconds: float = 0.0

    @property
    def generated(self) -> str:
        """The text of the tokens that the model added."""
        return "".join(self.texts[self.prompt_tokens :])

    @property
    def name(self) -> str:
        """The model's file name without its ending."""
        return Path(self.model).name.removesuffix(".gguf")

    def layer(self, index: int) -> LayerAttention:
        """Raises UsageError, with the reason, for a layer without a map."""
        found = self.layers.get(index)
        if found is None:
            why = self.missing.get(index) or f"it was not captured; there are {_span(tuple(self.layers))}"
            raise UsageError(f"layer {index} of {self.name} has no attention map: {why}")
        return found

    def save(self, path: Path | str) -> Path:
        """As an ``.npz``: ``layer_3_weights`` and so on, and ``about`` with the rest as JSON."""
        import numpy as np

        arrays = {
            f"layer_{index}_{name}": getattr(layer, name) for index, layer in self.layers.items() for name in _ARRAYS
        }
        about: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("model", "token_ids", "texts", "prompt_tokens", "llama_cpp", "cache_type", "seconds")
        }
        about["rows"] = [self.rows.start, self.rows.stop]
        about["missing"] = {str(index): why for index, why in self.missing.items()}
        about["layers"] = {
            str(index): {
                name: getattr(layer, name)
                for name in (
                    "heads", "heads_in_all", "kv_heads", "scale", "max_bias", "softcapped", "sinks", "latent",
                )
            }
            for index, layer in self.layers.items()
        }  # fmt: skip
        path = Path(path)
        with path.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)
        return path

    @classmethod
    def load(cls, path: Path | str) -> Capture:
        """Load what ``save`` wrote."""
        import numpy as np

        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            layers = {
                int(index): LayerAttention(
                    index=int(index),
                    **{**fields, "heads": tuple(fields["heads"])},
                    **{name: file[f"layer_{index}_{name}"] for name in _ARRAYS},
                )
                for index, fields in about.pop("layers").items()
            }
        about["missing"] = {int(index): why for index, why in about["missing"].items()}
        about["token_ids"], about["texts"] = tuple(about["token_ids"]), tuple(about["texts"])
        return cls(**{**about, "rows": range(*about["rows"]), "layers": layers})


def _span(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "none"
