"""Bytes and parameters of a model's tensors, by part and by layer."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from llamatel.plan.model_shape import Weights

_BLOCK = re.compile(r"blk\.(\d+)\.")
_INPUT = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")


class Tensor(Protocol):
    """One tensor of a header."""

    @property
    def name(self) -> str:
        """As in the file."""

    @property
    def shape(self) -> Sequence[int]:
        """Fastest dimension first."""

    @property
    def type(self) -> str:
        """How it is stored: ``F16``, ``Q4_K``."""

    @property
    def n_bytes(self) -> int | None:
        """None for an unknown type."""


def block_of(name: str) -> int | None:
    """The block that a tensor belongs to; None outside blocks."""
    found = _BLOCK.match(name)
    return None if found is None else int(found[1])


def part_of(name: str) -> str:
    """embeddings, output, experts, feed-forward, attention, recurrent or other."""
    if name.startswith(_INPUT):
        return "embeddings"
    if name.startswith("output."):
        return "output"
    if "_exps." in name or "_chexps." in name:
        return "experts"
    if re.search(r"\.ffn_", name):
        return "feed-forward"
    if re.search(r"\.attn_|\.indexer", name):
        return "attention"
    if re.search(r"\.(ssm|time_mix|channel_mix|shortconv)", name):
        return "recurrent"
    return "other"


def weigh(tensors: Sequence[Tensor], layers: int, experts: int | None, experts_used: int | None) -> Weights:
    """Bytes and parameters of the tensors. A tensor of an unknown type counts as 0 bytes."""
    share = experts_used / experts if experts and experts_used else 1.0
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    parameters: defaultdict[str, int] = defaultdict(int)
    sizes: defaultdict[str, int] = defaultdict(int)
    by_layer = [0] * layers
    active_parameters = active_bytes = 0.0
    input_bytes = output_bytes = tied_bytes = 0
    for tensor in tensors:
        number, size, part = math.prod(tensor.shape), tensor.n_bytes or 0, part_of(tensor.name)
        parameters[part] += number
        sizes[part] += size
        used = share if part == "experts" else 1.0
        active_parameters += number * used
        if tensor.name.startswith(_INPUT):
            input_bytes += size
            if tied and tensor.name == "token_embd.weight":
                tied_bytes = size
                output_bytes += size
                active_bytes += size
        else:
            active_bytes += size * used
            block = block_of(tensor.name)
            if block is None:
                output_bytes += size
            elif block < layers:
                by_layer[block] += size
    return Weights(
        n_bytes=sum(sizes.values()),
        parameters=sum(parameters.values()),
        active_parameters=round(active_parameters),
        active_bytes=round(active_bytes),
        parts=tuple((part, parameters[part], sizes[part]) for part in sorted(parameters, key=lambda p: -sizes[p])),
        layer_bytes=tuple(by_layer),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        tied_bytes=tied_bytes,
        tensors=tuple((each.name, each.n_bytes or 0) for each in tensors if not each.name.startswith(_INPUT)),
        expert_share=share,
    )
