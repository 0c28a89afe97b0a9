"""The builds of llama.cpp whose cache sizes were compared with ours, by architecture.

``make verify`` starts every build at hand on the models of its suite and writes the ranges: of numbers of builds that
were compared one after another, all rows equal. Builds inside a range are assumed to be the same.
"""

from __future__ import annotations

from functools import cache

from llamatel.plan.architectures import Architecture
from llamatel.plan.llama_build import LlamaBuild

Ranges = tuple[tuple[int, int], ...]

_RANGES = """
10229-11669: hy_v3 laguna nanbeige
10566-11433: deepseek4
10566-11669: deepseek32 glm-dsa granite_swa graniteswitch kimi-k3 minimax-01 minimax-m3 pockettts qwen3tts
10809-10809 11063-11669: exaone-moe
10809-11669: bailingmoe3 dots3note
11063-11433 11549-11669: qwen4exp
11063-11669: cohere2moe hrm_text hy_v4 jais2 maple mellum muse-glimmer spark2_5
11433-11433 11549-11669: glm5-next
11433-11669: dflash
11549-11669: clef gemma-embedding2 k2-horizon
11669-11669: maion-coder
8672-11669: afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bitnet bloom chameleon chatglm cogvlm cohere2
8672-11669: command-r dbrx deci deepseek deepseek2-ocr dots1 ernie4_5 ernie4_5-moe exaone exaone4 falcon falcon-h1 gemma
8672-11669: gemma-embedding gemma2 gemma3 gemma3n glm4 gpt2 gptneox granite granitehybrid grok grovemoe hunyuan-dense
8672-11669: hunyuan-moe internlm2 jais jamba kimi-linear lfm2moe llada llama llama-embed llama4 maincoder mamba mimo2
8672-11669: minicpm minicpm3 minimax-m2 mistral3 mistral4 mpt nemotron nemotron_h nemotron_h_moe olmo olmo2 olmoe
8672-11669: openelm orion paddleocr phi3 plamo plamo2 plamo3 plm qwen qwen2moe qwen2vl qwen3 qwen35moe qwen3moe
8672-11669: qwen3next qwen3vl qwen3vlmoe refact rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 stablelm starcoder
8672-11669: step35 t5 t5encoder xverse
8672-8672 10566-11669: qwen35
8672-8672 9538-10809 11063-11669: bailingmoe2 deepseek2 glm4moe
8672-8672 9873-11669: mamba2
9538-11669: bert codeshell dream gemma4 gpt-oss granitemoe hunyuan_vl lfm2 pangu-embedded phi2 phimoe qwen2 starcoder2
9538-11669: talkie
9873-11669: eagle3 gemma4-assistant
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
    """Whether ``build`` is one of those that were compared; None is the newest of them.

    A build without a number counts where all builds that know the architecture are the same.
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
