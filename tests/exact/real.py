"""Models of real dimensions, for compute buffers. Their weights are holes in sparse files.

Dimensions are those of the models' public configurations. Tensors, as for the tiny models, are those required by
llama.cpp's loader (``discover``), stored in ``real_tensors.txt``; the weights are never read.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from llamatel.plan.fit_params import parse_measured

from .harness import Allocation
from .models import Metadata, TinyModel, full_model
from .tensor_names import Shape
from .writer import write_head

TABLE = Path(__file__).with_name("real_tensors.txt")


def _heads(query: int, kv: int, length: int) -> Metadata:
    lengths = dict.fromkeys(("attention.key_length", "attention.value_length"), length)
    return {"attention.head_count": query, "attention.head_count_kv": kv, **lengths}


def _size(blocks: int, embedding: int, feed_forward: int) -> Metadata:
    return {"block_count": blocks, "embedding_length": embedding, "feed_forward_length": feed_forward}


def _experts(number: int, used: int, feed_forward: int) -> Metadata:
    return {"expert_count": number, "expert_used_count": used, "expert_feed_forward_length": feed_forward}


REAL: tuple[TinyModel, ...] = tuple(
    full_model(name, {"context_length": 131072}, *metadata)
    for name, *metadata in (
        ("llama:3.2-1B", _size(16, 2048, 8192), _heads(32, 8, 64)),
        ("llama:3.1-8B", _size(32, 4096, 14336), _heads(32, 8, 128)),
        ("qwen2:2.5-0.5B", _size(24, 896, 4864), _heads(14, 2, 64)),
        ("qwen3:8B", _size(36, 4096, 12288), _heads(32, 8, 128)),
        ("qwen3moe:30B-A3B", _size(48, 2048, 6144), _heads(32, 4, 128), _experts(128, 8, 768)),
        ("gemma3:4B", _size(34, 2560, 10240), _heads(8, 4, 256), {"attention.sliding_window": 1024}),
        ("gemma3:27B", _size(62, 5376, 21504), _heads(32, 16, 128), {"attention.sliding_window": 1024}),
        (
            "gpt-oss:20B",
            _size(24, 2880, 2880),
            _heads(64, 8, 64),
            _experts(32, 4, 2880),
            {"attention.sliding_window": 128},
        ),
        (
            "deepseek2:V2-Lite",
            _size(27, 2048, 10944),
            _heads(16, 1, 576),
            _experts(64, 6, 1408),
            {
                "attention.value_length": 512,
                "attention.key_length_mla": 192,
                "attention.value_length_mla": 128,
                "attention.kv_lora_rank": 512,
                "rope.dimension_count": 64,
                "expert_shared_count": 2,
                "expert_weights_scale": 1.0,
                "leading_dense_block_count": 1,
            },
        ),
        (
            "lfm2:1.2B",
            _size(16, 2048, 8192),
            _heads(32, 8, 64),
            {
                "attention.head_count_kv": [0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0],
                "shortconv.l_cache": 3,
            },
        ),
        (
            "mamba2:2.7B",
            _size(64, 2560, 0),
            {
                "attention.head_count": 0,
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 5120,
                "ssm.state_size": 128,
                "ssm.time_step_rank": 80,
                "ssm.group_count": 1,
            },
        ),
    )
)


def _quantised(name: str, shape: Shape) -> gguf.GGMLQuantizationType:
    """Types as in a Q4_K_M file."""
    kinds = gguf.GGMLQuantizationType
    if len(shape) < 2 or "ffn_gate_inp" in name or any(word in name for word in ("norm", "sinks", "bias")):
        return kinds.F32
    if shape[0] % 256 == 0:
        return kinds.Q6_K if name == "output.weight" else kinds.Q4_K
    return kinds.Q8_0 if shape[0] % 32 == 0 and shape[0] > 64 else kinds.F32


def _half(_name: str, shape: Shape) -> gguf.GGMLQuantizationType:
    """16-bit floats for matrices."""
    return gguf.GGMLQuantizationType.F16 if len(shape) > 1 and shape[0] > 4 else gguf.GGMLQuantizationType.F32


def write_sparse(path: Path, model: TinyModel, tensors: Mapping[str, Shape], *, quantised: bool = False) -> Path:
    """Write the header, with few tokens; the weights, 16-bit floats or quantised, are a hole after it."""
    writer = gguf.GGUFWriter(path, model.architecture)
    write_head(writer, model)
    end = 0
    for name, shape in tensors.items():
        kind = (_quantised if quantised else _half)(name, shape)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = size * math.prod(shape) // block
        writer.add_tensor_info(name, shape[::-1], np.dtype(np.float16), n_bytes, raw_dtype=kind)
        end += n_bytes + -n_bytes % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        head = file.seek(0, 2)
        file.truncate(head + -head % 32 + end)
    return path


@dataclass(frozen=True)
class NoAlloc:
    """llama-fit-params in a llama-server's folder: loads a model without reading weights or allocating."""

    server: Path

    def allocate(self, model: Path, flags: Sequence[str]) -> Allocation:
        """Return its result; ``tensors`` has the compute buffer in whole MiB, as bytes."""
        command = [str(self.server.with_name("llama-fit-params")), "-m", str(model), "-fitp", "on", *flags]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_ARG_")}
        environment["GGML_NO_BACKTRACE"] = "1"
        for _ in range(20):  # it may exit after an error before the logging thread has written it
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
            if done.returncode >= 0 or "error loading model" in done.stderr:
                break
        lines = parse_measured(done.stdout)
        outcome = "started" if lines else "refused" if done.returncode == 1 else "aborted"
        compute = tuple(("compute", line.compute_mib << 20) for line in lines)
        return Allocation(outcome, compute, done.stdout + done.stderr)
