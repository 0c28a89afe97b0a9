"""The settings for every model of the suite: llama-server's flags, preceded by variables."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .models import TinyModel

Flags = tuple[str, ...]

_SETTINGS = """

-c 512 -np 1
-c 1000 -np 1
-c 2048 -np 2
-c 8192 -np 3
-c 3000 -np 4 -kvu
-c 16384 -np 1
-c 4096 -np 2 -b 256 -ub 64
-c 8192 -np 1 -b 1024 -ub 1024
-c 4096 -np 2 --swa-full
-c 4096 -np 1 -fa off
-c 2048 -np 2 -fa on -ctk q8_0 -ctv q8_0
-c 2048 -np 1 -fa off -ctk q8_0
-c 1024 -np 1 -fa off -ctv q4_0
-c 2048 -np 1 -ctk q4_0 -ctv f16
-c 2048 -np 2 -kvu -ctk bf16 -ctv bf16
-c 2048 -ctk q5_1 -ctv iq4_nl
-c 2048 -np 8 -ctk f32 -ctv f32
-np 2 -nkvo
-c 0
-c 0 -np 3 -fit on
-c 0 -np 2 -kvu -fit on
-np 2 -fit on
-c 2048 -b 2048 -ub 512 -np -1 -fa auto -ctk f16 -ctv f16 -no-kvu -ngl auto -kvo --kv-unified-per-slot 0
-c 2048 -np 2 -ub 0
-c 2048 -np 2 -b 0
-np 3 --kv-unified-per-slot 700
LLAMA_ARG_CTX_SIZE=0 LLAMA_ARG_N_PARALLEL=2 -fit on
LLAMA_ARG_CTX_SIZE=3000 LLAMA_ARG_N_PARALLEL=3 LLAMA_ARG_KV_UNIFIED=1 LLAMA_ARG_UBATCH=128 LLAMA_ARG_SWA_FULL=true
LLAMA_ARG_CACHE_TYPE_K=q8_0 LLAMA_ARG_CACHE_TYPE_V=q8_0 LLAMA_ARG_FLASH_ATTN=on LLAMA_ARG_NO_KV_UNIFIED=1 -c 2048 -np 2
LLAMA_ARG_BATCH=300 LLAMA_ARG_NO_KV_OFFLOAD=0 LLAMA_ARG_CTX_SIZE=512 -c 2048 -np 1
"""
OTHER_BUILDS: tuple[Flags, ...] = tuple(
    tuple(line.split())
    for line in (
        "-c 4096 -np 1",
        "-c 2048 -np 2 -fa on -ctk q8_0 -ctv q8_0",
        "-c 3000 -np 4 -kvu -fa off",
        "-c 2048",
        "-c 0 -np 2 -fit on",
        "LLAMA_ARG_CTX_SIZE=1000 LLAMA_ARG_N_PARALLEL=2 LLAMA_ARG_SWA_FULL=1",
    )
)
"""For builds other than the suite's own."""
GRID: tuple[Flags, ...] = tuple(tuple(line.split()) for line in _SETTINGS.split("\n")[1:-1])

_DRAFTING = """
--spec-type draft-mtp -c 2048
--spec-type draft-mtp -c 2048 -np 2 -ctk q8_0 -ctv q8_0
--spec-type draft-mtp --spec-draft-n-max 5 -c 4096 -np 1 -ctkd q8_0 -ctvd q8_0
--spec-type draft-mtp -c 1000 -np 1 -ctkd q8_0 -ctvd f16
"""
DRAFTING: tuple[Flags, ...] = tuple(tuple(line.split()) for line in _DRAFTING.strip().split("\n"))

_WITH_DRAFT = """
-c 2048
-c 1000 -np 2 -ctkd q8_0 -ctvd q8_0
-c 3000 -np 4 -kvu -ctk q8_0 -ctv q8_0
-c 4096 -np 2 -fa off
-c 8192 -np 1 -ub 128 -b 256 --swa-full
-c 2048 -np 1 -ctkd q4_0 -ctvd f16
"""
WITH_DRAFT: tuple[Flags, ...] = tuple(tuple(line.split()) for line in _WITH_DRAFT.strip().split("\n"))
"""For a model with a separate draft model."""


def settings_for(model: TinyModel) -> tuple[Flags, ...]:
    """Return the whole grid, with drafting if the model has draft blocks."""
    return GRID + (DRAFTING if model.metadata.get("nextn_predict_layers") else ())


def random_settings(seed: int) -> Iterator[Flags]:
    """Return random settings, the same for the same seed."""
    source = random.Random(seed)
    types = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
    while True:
        flags = ["-c", str(source.randrange(64, 12000))]
        if source.random() < 0.8:
            flags += ["-np", str(source.randrange(1, 9))]
        if source.random() < 0.4:
            flags.append(source.choice(("-kvu", "-no-kvu", "--swa-full")))
        if source.random() < 0.6:
            ubatch = source.randrange(16, 2049)
            flags += ["-ub", str(ubatch), "-b", str(ubatch + source.randrange(0, 1000))]
        if source.random() < 0.5:
            flags += ["-fa", source.choice(("on", "off", "auto"))]
        if source.random() < 0.7:
            kind = source.choice(types)
            flags += ["-ctk", kind, "-ctv", kind if source.random() < 0.8 else source.choice(types)]
        yield tuple(flags)
