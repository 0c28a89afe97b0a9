"""The model that a server runs, as its GGUF describes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from llamatel.collectors import Collector, Sample
from llamatel.plan.attention_kind import attention_summary
from llamatel.plan.model_shape import ModelShape
from llamatel.snapshots import Placement, Snapshot


class ModelCollector(Collector):
    """The model's properties, as labels of one sample, and its size."""

    name = "model"

    def on_snapshot(self, snapshot: Snapshot) -> Iterator[Sample]:
        """Samples of the model; of one whose file cannot be read, only its adapters."""
        for state in snapshot.servers:
            adapters = () if state.settings is None else state.settings.lora_adapters
            for name in dict.fromkeys(PurePath(path).stem for path in adapters):
                yield Sample("llamacpp.lora.adapter", 1, state.server, {"adapter": name})
            shape = state.model
            if shape is None:
                continue
            yield Sample("llamacpp.model.info", 1, state.server, _labels(shape, state.placement))
            weights = shape.weights
            for metric, value in (
                ("llamacpp.model.context_length", shape.context_length),
                ("llamacpp.model.parameters", None if weights is None else weights.parameters),
                ("llamacpp.model.active_parameters", None if weights is None else weights.active_parameters),
                ("llamacpp.model.size", None if weights is None else weights.n_bytes),
            ):
                if value is not None:
                    yield Sample(metric, value, state.server)


def _labels(shape: ModelShape, placement: Placement | None) -> dict[str, str | int]:
    attending = [layer for layer in shape.trunk if layer.attends]
    labels: dict[str, str | int | None] = {
        "architecture": shape.architecture,
        "quantization": shape.file_type,
        "attention": attention_summary(shape),
        "layers": len(shape.trunk),
        "heads": _range([layer.heads for layer in attending if layer.heads]),
        "kv_heads": _range([layer.kv_heads for layer in attending if layer.kv_heads]),
        "embedding_length": shape.embedding_length,
        "experts": shape.experts,
        "experts_used": shape.experts_used,
        "cache": shape.cache,
        "gpu_layers": None if placement is None else _on_gpu(placement),
    }
    return {name: value for name, value in labels.items() if value is not None}


def _on_gpu(placement: Placement) -> str | None:
    """``17/17``, or ``no GPU``; None where the log does not have it."""
    if placement.no_gpu:
        return "no GPU"
    return None if placement.gpu_layers is None else f"{placement.gpu_layers}/{placement.total_layers}"


def _range(numbers: list[int]) -> int | str | None:
    """A number that is the same in all layers, or the lowest and the highest."""
    if not numbers:
        return None
    least, most = min(numbers), max(numbers)
    return least if least == most else f"{least}-{most}"
