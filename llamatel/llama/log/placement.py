"""Parses where a model was loaded: layers and buffers by device, or that there is no GPU.

At ``-lv 3``, the default, only the absence of a GPU is logged; the rest needs ``-lv 4``, which slows a server down.
Sources: common/arg.cpp (``no usable GPU found``), ggml/src/ggml-cuda (``failed to initialize``), src/llama-model.cpp
(``offloaded``, ``model buffer size``), src/llama-kv-cache.cpp, src/llama-context.cpp.
"""

from __future__ import annotations

import re
from dataclasses import replace

from llamatel.snapshots import Placement

_NO_GPU = re.compile(r"(?:warning: )?no usable GPU found|\w{1,64}: failed to initialize (?:CUDA|ROCm|MUSA)\b")
_LAYERS = re.compile(r"\w{1,64}: offloaded (\d{1,6})/(\d{1,6}) layers to GPU")
_BUFFER = re.compile(r"\w{1,64}: +(\S{1,64}) +(model|KV|RS|compute) buffer size = +(\d{1,9}(?:\.\d{1,6})?) MiB")
_PARTS = {"model": "weights", "KV": "kv_cache", "RS": "kv_cache", "compute": "compute"}
_MIB = 1 << 20
_MOST_BUFFERS = 256


def reports_no_gpu(text: str) -> bool:
    """Whether a line reports that there is no GPU: llama.cpp prints it on stderr, not in its log."""
    return _NO_GPU.match(text) is not None


def learn_placement(known: Placement | None, text: str) -> Placement | None:
    """``known`` updated with a line; None if the line is about something else.

    Buffers of the same device and part add up, as those of a window's cache and of a second model do.
    """
    if "buffer size" in text and (found := _BUFFER.match(text)):
        placement = known or Placement()
        key = found.group(1), _PARTS[found.group(2)]
        if key not in placement.buffers and len(placement.buffers) >= _MOST_BUFFERS:
            return placement
        size = round(float(found.group(3)) * _MIB)
        return replace(placement, buffers={**placement.buffers, key: placement.buffers.get(key, 0) + size})
    if "offloaded" in text and (found := _LAYERS.match(text)):
        if known is not None and known.gpu_layers is not None:
            return known  # of a second model, which drafts: the first is the server's
        return replace(known or Placement(), gpu_layers=int(found.group(1)), total_layers=int(found.group(2)))
    if ("usable GPU" in text or "failed to initialize" in text) and _NO_GPU.match(text):
        return replace(known or Placement(), no_gpu=True)
    return None
