"""The builds of llama.cpp whose cache sizes were compared with ours, by architecture.

``make verify`` runs every available build with the models of its suite and writes the ranges: build numbers between
which all compared builds agreed in all rows. Other builds inside a range are assumed to agree.
"""

from __future__ import annotations

from functools import cache

from llamatel.plan.architectures import Architecture
from llamatel.plan.llama_build import LlamaBuild

Ranges = tuple[tuple[int, int], ...]

_RANGES = """
10068-11739: hy_v3
10229-11739: laguna nanbeige
10566-11433: deepseek4
10566-11739: granite_swa graniteswitch kimi-k3 minimax-01 minimax-m3 pockettts qwen3tts
10809-10809 11063-11739: exaone-moe
10809-11739: bailingmoe3 dots3note
11063-11433 11549-11739: qwen4exp
11063-11739: cohere2moe hrm_text hy_v4 jais2 maple mellum muse-glimmer spark2_5
11433-11433 11549-11739: glm5-next
11433-11739: dflash
11549-11739: clef gemma-embedding2 k2-horizon
11669-11739: maion-coder vllm-decision2
11739-11739: beam kolibri1 muse-spark
7376-11739: afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bitnet bloom chatglm cogvlm cohere2 command-r dbrx
7376-11739: deci deepseek dots1 ernie4_5 ernie4_5-moe exaone exaone4 falcon gemma gemma-embedding gemma2 gemma3n glm4
7376-11739: gpt2 gptneox granite grovemoe hunyuan-dense hunyuan-moe internlm2 jais llada llama llama4 mamba minicpm
7376-11739: minicpm3 minimax-m2 mistral3 mpt nemotron olmo olmo2 olmoe openelm orion phi3 plamo plm qwen qwen2moe qwen3
7376-11739: qwen3moe qwen3vl qwen3vlmoe refact rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 stablelm starcoder
7376-11739: t5 t5encoder xverse
7376-7827 7964-9294 9538-10809 11063-11739: deepseek2
7376-8352 8929-11739: granitemoe
7376-9093 9538-10809 11063-11739: bailingmoe2
7551-11739: grok llama-embed qwen2vl
7710-11739: maincoder
7710-9093 9538-10809 11063-11739: glm4moe
7964-8929 9873-11739: mamba2
8156-11739: falcon-h1 granitehybrid jamba kimi-linear lfm2moe nemotron_h nemotron_h_moe paddleocr plamo2 qwen3next
8156-9093 10566-11739: qwen35
8156-9093 9538-10068 10229-10229 10566-11739: glm-dsa
8156-9093 9538-11739: qwen35moe
8352-11739: chameleon gemma3 mimo2 plamo3 step35
8672-11739: deepseek2-ocr mistral4
8929-11739: bert codeshell dream gemma4 gpt-oss hunyuan_vl pangu-embedded phi2 phimoe starcoder2
9294-11739: lfm2 qwen2
9538-10229 10566-11739: deepseek32
9538-11739: talkie
9713-11739: gemma4-assistant
9873-11739: eagle3
"""


@cache
def _by_architecture() -> dict[str, Ranges]:
    found: dict[str, Ranges] = {}
    for line in _RANGES.strip().splitlines():
        spans, _, names = line.partition(": ")
        ends = (span.split("-") for span in spans.split())
        ranges = tuple((int(each[0]), int(each[-1])) for each in ends)
        found |= dict.fromkeys(names.split(), ranges)
    return found


def verified_builds(architecture: str) -> Ranges:
    """First and last numbers of builds, oldest first; () for an architecture that was not compared."""
    return _by_architecture().get(architecture, ())


def newest_verified() -> int | None:
    """The newest build that was compared."""
    return max((ranges[-1][1] for ranges in _by_architecture().values()), default=None)


def is_verified(row: Architecture, build: LlamaBuild | None) -> bool:
    """Whether ``build`` was compared; None: the newest compared build.

    A build without a number counts if all builds with the architecture are the same.
    """
    ranges = verified_builds(row.name)
    if not ranges:
        return False
    if build is not None and build.number is not None:
        return any(first <= build.number <= last for first, last in ranges)
    newest = ranges[-1][1] == newest_verified()
    return newest and (build is None or (len(ranges) == 1 and not row.earlier))


def in_words(ranges: Ranges) -> str:
    """``b7376 to b10229, b11063 to b11669``."""
    return ", ".join(f"b{first}" if first == last else f"b{first} to b{last}" for first, last in ranges)
