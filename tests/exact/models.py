"""The tiny models of the suite: metadata by architecture, small enough to start in a tenth of a second.

Tensors and their shapes are not listed here: ``discover`` finds them with llama.cpp's loader, in ``tensors.txt``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .tensor_names import Shape, expand

Metadata = dict[str, Any]

CONTEXT = 4096

COMMON: Metadata = {
    "context_length": CONTEXT,
    "embedding_length": 128,
    "block_count": 4,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
"""Keys of every model, overridden by its own; None removes a key."""

EXPERTS: Metadata = {
    "expert_count": 2,
    "expert_used_count": 2,
    "expert_feed_forward_length": 64,
    "expert_shared_feed_forward_length": 32,
    "expert_shared_count": 1,
    "expert_gating_func": 2,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "expert_group_scale": 1.0,
    "experts_per_group": 1,
    "interleave_moe_layer_step": 2,
    "leading_dense_block_count": 1,
    "moe_every_n_layers": 2,
}
LATENT: Metadata = {
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": 96,
    "attention.value_length": 64,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 64,
    "rope.dimension_count": 32,
}
FULL_HEADS: Metadata = {  # DeepSeek files from before MLA: no _mla keys, every head cached
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "attention.key_length": 64,
    "attention.value_length": 32,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 64,
    "rope.dimension_count": 32,
}
INDEXER: Metadata = {
    "attention.indexer.head_count": 2,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 64,
}
INDEXER_TENSORS = "\n".join(
    f"blk.*.indexer.{name}"
    for name in ("k_norm.weight", "k_norm.bias", "proj.weight", "attn_k.weight", "attn_q_b.weight")
)
SSM: Metadata = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 256,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
}
DELTA: Metadata = {  # gated delta net: inner size = value heads (time step rank) x state size
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 128,
    "ssm.state_size": 32,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "rope.dimension_sections": [4, 4, 4, 4],
    "attention.key_length": 64,
    "attention.value_length": 64,
}
DELTA_TENSORS = "blk.{0}.attn_qkv.weight\nblk.{0}.attn_gate.weight"
KDA: Metadata = {
    "ssm.conv_kernel": 4,
    "kda.head_dim": 32,
    "kda.safe_gate": True,
    "kda.gate_lower_bound": -5.0,
}
RWKV: Metadata = {
    "wkv.head_size": 32,
    "time_mix_extra_dim": 32,
    "time_decay_extra_dim": 32,
    "rescale_every_n_layers": 6,
    "attention.decay_lora_rank": 32,
    "attention.iclr_lora_rank": 32,
    "attention.value_residual_mix_lora_rank": 16,
    "attention.gate_lora_rank": 32,
    "attention.head_count": 0,
}
XIELU: Metadata = {f"/xielu.{key}": [0.5] * 4 for key in ("alpha_n", "alpha_p", "beta", "eps")}
"""Keys with a leading slash are without the architecture's prefix."""
HYPER: Metadata = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
    "hyper_connection.low_rank": 8,
    "hyper_connection.magnitude": 2.0,
}
DRAFTING: Metadata = {"block_count": 5, "nextn_predict_layers": 1}
DEEPSEEK_4: Metadata = {
    **EXPERTS,
    **INDEXER,
    **HYPER,
    "attention.sliding_window": 128,
    "expert_gating_func": 4,
    "swiglu_clamp_exp": 10.0,
    "hash_layer_count": 0,
    "attention.head_count": 4,
    "attention.head_count_kv": 1,
    "attention.key_length": 64,
    "attention.value_length": 64,
    "rope.dimension_count": 32,
    "attention.q_lora_rank": 32,
    "attention.output_group_count": 4,
    "attention.output_lora_rank": 16,
    "attention.compress_ratios": [0, 4, 128, 4],
    "attention.compress_rope_freq_base": 160000.0,
}


@dataclass(frozen=True)
class TinyModel:
    """One model of the suite: its name, its architecture, its metadata without the architecture's prefix."""

    name: str
    architecture: str
    metadata: Metadata
    wants: tuple[str, ...] = ()
    """Tensors that are optional for the loader but not for the graph, as lines of ``tensors.txt``."""
    target: str | None = None
    """The target model of the suite, for a draft model that does not run alone."""

    @property
    def seeds(self) -> dict[str, Shape]:
        """Initial tensors; without these the loader treats a file with draft blocks as incomplete."""
        blocks, drafting = self.metadata["block_count"], self.metadata.get("nextn_predict_layers", 0)
        seeds: dict[str, Shape] = {}
        for want in self.wants:
            seeds |= expand(want.replace("*", f"{{0-{blocks - 1}}}"))
        if drafting and self.target is None:
            seeds |= {"blk.0.attn_norm.weight": (1,), f"blk.{blocks - drafting}.nextn.eh_proj.weight": (1,)}
        return seeds


def full_model(name: str, *layers: Metadata) -> TinyModel:
    """A model with all keys given, except for those of COMMON for normalisation."""
    metadata = {key: value for key, value in COMMON.items() if "epsilon" in key}
    for layer in layers:
        metadata.update(layer)
    return TinyModel(name, name.partition(":")[0], metadata)


def _model(name: str, *layers: Metadata, wants: str = "", target: str | None = None, **keys: Any) -> TinyModel:
    """A model named ``architecture`` or ``architecture:variant``; later keys override; ``a__b`` means ``a.b``."""
    metadata = dict(COMMON)
    for layer in (*layers, {key.replace("__", "."): value for key, value in keys.items()}):
        metadata.update(layer)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return TinyModel(name, name.partition(":")[0], metadata, tuple(wants.splitlines()), target)


def _heads(*kv_heads: int) -> Metadata:
    return {"attention.head_count_kv": list(kv_heads)}


def _window(size: int, pattern: int | list[bool] | None = None) -> Metadata:
    keys: Metadata = {"attention.sliding_window": size}
    if pattern is not None:
        keys["attention.sliding_window_pattern"] = pattern
    return keys


ALTERNATE = [True, False, True, False]

MODELS: tuple[TinyModel, ...] = (
    # Every layer keeps K and V of every head.
    _model("llama"),
    _model("llama:mha", attention__head_count_kv=4),
    _model("llama:mqa", attention__head_count_kv=1),
    _model("llama:no-kv-key", attention__head_count_kv=None),
    _model("llama:head80", attention__key_length=80, attention__value_length=80, rope__dimension_count=80),
    _model("llama:moe", EXPERTS),
    _model("llama:ignored-window", _window(512)),
    _model("llama:short-context", context_length=1000),
    _model("deci", attention__head_count=[4, 0, 4, 2], attention__head_count_kv=[2, 0, 4, 1]),
    _model("falcon", attention__head_count_kv=1),
    _model("grok", EXPERTS),
    _model("gpt2", attention__head_count_kv=None),
    _model("gptneox", attention__head_count_kv=None, use_parallel_residual=False),
    _model("mpt", attention__head_count_kv=None, attention__max_alibi_bias=8.0, attention__clamp_kqv=1.0),
    _model("baichuan", attention__head_count_kv=4),
    _model("starcoder", attention__head_count_kv=1),
    _model("refact", attention__head_count_kv=1),
    _model("bloom", attention__head_count_kv=None),
    _model("stablelm", use_parallel_residual=False),
    _model("qwen", attention__head_count_kv=None, feed_forward_length=192),
    _model("qwen2"),
    _model("qwen2moe", EXPERTS),
    _model("qwen2vl", rope__dimension_sections=[4, 4, 4, 4]),
    _model("qwen3", attention__key_length=64, attention__value_length=64),
    _model("qwen3:mqa", attention__key_length=64, attention__value_length=64, attention__head_count_kv=1),
    _model("qwen3moe", EXPERTS, attention__key_length=64, attention__value_length=64),
    _model("qwen3vl", rope__dimension_sections=[4, 4, 4, 4]),
    _model("qwen3vlmoe", EXPERTS, rope__dimension_sections=[4, 4, 4, 4]),
    _model("phi2", attention__head_count_kv=4),
    _model("phi3", wants="blk.*.attn_qkv.weight"),
    _model("phi3:ignored-window", _window(512), wants="blk.*.attn_qkv.weight"),
    _model("phimoe", EXPERTS),
    _model("plamo"),
    _model("codeshell"),
    _model("orion"),
    _model("internlm2"),
    _model("minicpm", embedding_scale=12.0, residual_scale=1.4, logit_scale=1.0),
    _model(
        "minicpm3",
        attention__head_count_kv=4,
        attention__q_lora_rank=32,
        attention__kv_lora_rank=32,
        attention__key_length=64,
        attention__value_length=32,
        rope__dimension_count=32,
    ),
    _model("gemma", attention__key_length=64, attention__value_length=64),
    _model("starcoder2"),
    _model("xverse"),
    _model("command-r", logit_scale=1.0),
    _model("dbrx", EXPERTS, attention__clamp_kqv=1.0),
    _model("olmo", attention__clamp_kqv=1.0),
    _model("olmoe", EXPERTS, attention__head_count_kv=4),
    _model(
        "openelm",
        attention__head_count=[2, 4, 4, 6],
        attention__head_count_kv=[1, 2, 2, 3],
        attention__key_length=32,
        attention__value_length=32,
        feed_forward_length=[64, 96, 128, 160],
    ),
    _model("arctic", EXPERTS),
    _model("deepseek", EXPERTS),
    _model("chatglm"),
    _model("glm4"),
    _model("glm4moe", EXPERTS, block_count=5, nextn_predict_layers=1),
    _model("bitnet"),
    _model("jais", attention__head_count_kv=None, attention__max_alibi_bias=8.0),
    _model("jais2"),
    _model("nemotron"),
    _model("exaone"),
    _model("granite", logit_scale=1.0, residual_scale=1.0, embedding_scale=1.0, attention__scale=1.0),
    _model("granitemoe", EXPERTS, logit_scale=1.0, residual_scale=1.0, embedding_scale=1.0, attention__scale=1.0),
    _model(
        "graniteswitch",
        logit_scale=1.0,
        adapters__count=1,
        adapters__lora_rank=8,
        adapters__token_ids_activate=[5],
        adapters__token_ids_substitute=[6],
    ),
    _model("bailingmoe", EXPERTS),
    _model("bailingmoe2", EXPERTS, block_count=5, nextn_predict_layers=1),
    _model("dots1", EXPERTS, attention__head_count_kv=4),
    _model("arcee"),
    _model("ernie4_5"),
    _model("ernie4_5-moe", EXPERTS),
    _model("hunyuan-moe", EXPERTS),
    _model("hunyuan-dense"),
    _model("hunyuan_vl", rope__dimension_sections=[4, 4, 4, 4]),
    _model("hy_v3", EXPERTS, block_count=5, nextn_predict_layers=1),
    _model("smollm3"),
    _model("seed_oss", attention__key_length=64, attention__value_length=64),
    _model("grovemoe", EXPERTS, expert_chunk_feed_forward_length=32),
    _model("apertus", XIELU),
    _model("minimax-m2", EXPERTS, attention__key_length=64, attention__value_length=64, rope__dimension_count=32),
    _model("cogvlm", attention__head_count_kv=4),
    _model("pangu-embedded"),
    _model("mistral3"),
    _model("mistral3:moe", EXPERTS),
    _model("llama-embed"),
    _model("maincoder"),
    _model("talkie", logit_scale=1.0),
    _model("paddleocr", rope__dimension_sections=[4, 4, 4, 4]),
    _model("nanbeige", num_loops=2),
    _model(
        "plm",
        attention__head_count_kv=4,
        attention__kv_lora_rank=32,
        attention__key_length=64,
        attention__value_length=32,
        rope__dimension_count=32,
    ),
    _model(
        "t5",
        attention__head_count_kv=None,
        attention__relative_buckets_count=32,
        decoder_start_token_id=0,
        wants="enc.blk.0.attn_rel_b.weight 4 32\ndec.blk.0.attn_rel_b.weight 4 32",
    ),
    _model(
        "t5encoder",
        attention__head_count_kv=None,
        attention__relative_buckets_count=32,
        wants="enc.blk.0.attn_rel_b.weight 4 32",
    ),
    _model("hrm_text", block_count=6, hrm__layers_per_stack=1, hrm__h_cycles=2, hrm__l_cycles=2),
    # Sliding windows.
    _model("gemma2", attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    _model("gemma2:window", _window(256)),
    _model("gemma3", _window(512), block_count=7),
    _model("gemma3:pattern", _window(256, 3), block_count=7),
    _model("gemma3:no-window", block_count=7),
    _model("gemma3n", _window(512), embedding_length=64, block_count=22, attention__head_count=2),
    _model(
        "gemma4",
        _window(512, [True, True, True, True, False] * 2),
        block_count=10,
        embedding_length_per_layer_input=16,
        attention__shared_kv_layers=5,
        attention__key_length=64,
        attention__value_length=64,
        attention__key_length_swa=32,
        attention__value_length_swa=32,
        attention__head_count_kv=[2, 2, 2, 2, 1] * 2,
        rope__dimension_count=64,
        rope__dimension_count_swa=32,
    ),
    _model("gpt-oss", EXPERTS, _window(128), attention__key_length=64, attention__value_length=64),
    _model("cohere2", _window(512), logit_scale=1.0, block_count=6),
    _model("cohere2moe", EXPERTS, _window(512), logit_scale=1.0, block_count=6),
    _model("llama4", EXPERTS, _window(8192), context_length=32768, block_count=6),
    _model("llama4:no-key", EXPERTS, context_length=32768, block_count=6),
    _model("exaone4", _window(512)),
    _model("exaone4:64-layers", _window(512), block_count=64, embedding_length=64, feed_forward_length=32),
    _model("exaone-moe", EXPERTS, _window(128), block_count=6, nextn_predict_layers=1),
    _model("olmo2", attention__head_count_kv=4),
    _model("olmo2:window", _window(512), attention__head_count_kv=4, block_count=6),
    _model("plamo3", _window(512), block_count=9),
    _model("afmoe", EXPERTS, _window(512), block_count=6),
    _model("mellum", EXPERTS, _window(512), block_count=6),
    _model(
        "laguna",
        EXPERTS,
        _window(512),
        block_count=6,
        rope__dimension_count=32,
        wants="blk.*.attn_gate.weight 128 4",
    ),
    _model("smallthinker", EXPERTS, _window(512), context_length=32768, block_count=6),
    _model("smallthinker:no-window", EXPERTS),
    _model("muse-glimmer", _window(512), block_count=6, logit_scale=1.0),
    _model(
        "mimo2",
        EXPERTS,
        _window(256, ALTERNATE),
        attention__key_length=64,
        attention__value_length=32,
        attention__head_count_kv=[2, 1, 2, 1],
    ),
    _model("step35", EXPERTS, _window(512, ALTERNATE)),
    _model("maple", EXPERTS, _window(512, ALTERNATE), swiglu_clamp_exp=7.0),
    _model("spark2_5", _window(512, ALTERNATE)),
    _model(
        "granite_swa",
        _window(512, ALTERNATE),
        logit_scale=1.0,
        residual_scale=1.0,
        embedding_scale=1.0,
        attention__scale=1.0,
    ),
    # One latent vector for all heads, and sparse attention with an indexer.
    _model("deepseek2", EXPERTS, LATENT),
    _model("deepseek2:full-heads", EXPERTS, FULL_HEADS),
    _model("deepseek2-ocr", EXPERTS, attention__head_count_kv=4),
    _model("mistral4", EXPERTS, LATENT),
    _model("deepseek32", EXPERTS, LATENT, INDEXER),
    _model("deepseek32:drafting", EXPERTS, LATENT, INDEXER, block_count=5, nextn_predict_layers=1),
    _model("glm-dsa", EXPERTS, LATENT, INDEXER, block_count=5, nextn_predict_layers=1, wants=INDEXER_TENSORS),
    _model("glm-dsa:types", EXPERTS, LATENT, INDEXER, attention__indexer__types=[1, 0, 1, 0], wants=INDEXER_TENSORS),
    _model("glm-dsa:long", EXPERTS, LATENT, INDEXER, context_length=1048576, block_count=8, wants=INDEXER_TENSORS),
    _model("hy_v4", EXPERTS, LATENT, INDEXER, HYPER, swiglu_clamp_exp=10.0, attention__indexer__types=[1, 0, 1, 0]),
    _model("hy_v4:dense", EXPERTS, LATENT, HYPER, swiglu_clamp_exp=10.0),
    _model(
        "dots3note",
        EXPERTS,
        LATENT,
        INDEXER,
        _window(512, ALTERNATE),
        attention__indexer__types=[0, 1, 0, 1],
        attention__kv_lora_rank_swa=32,
        attention__key_length_swa=64,
        attention__value_length_swa=32,
        attention__key_length_mla_swa=48,
        attention__value_length_mla_swa=32,
        rope__freq_base_swa=10000.0,
    ),
    _model(
        "minimax-m3",
        EXPERTS,
        {**INDEXER, "attention.indexer.head_count": 2},
        attention__indexer__block_size=4,
        attention__indexer__local_blocks=1,
        attention__key_length=64,
        attention__value_length=64,
        rope__dimension_count=32,
    ),
    _model("deepseek4", DEEPSEEK_4),
    # A state per sequence instead of a cache.
    _model("mamba", SSM, attention__head_count=0, attention__head_count_kv=None, feed_forward_length=0),
    _model("mamba2", SSM, attention__head_count=0, attention__head_count_kv=None, feed_forward_length=0),
    _model("rwkv6", RWKV, attention__head_count_kv=None, wants="blk.*.time_mix_lerp_fused.weight"),
    _model("rwkv6qwen2", RWKV, attention__head_count_kv=None, token_shift_count=1, attention__head_count=4),
    _model("rwkv7", RWKV, attention__head_count_kv=None),
    _model("arwkv7", RWKV, attention__head_count_kv=None, token_shift_count=1),
    # Both.
    _model("jamba", SSM, _heads(0, 2, 0, 2), EXPERTS),
    _model("jamba:uneven", SSM, _heads(2, 0, 4, 0), EXPERTS),
    _model("falcon-h1", SSM, wants="blk.*.ssm_conv1d.bias"),
    _model("plamo2", SSM, _heads(2, 0, 2, 0), ssm__group_count=0),
    _model(
        "granitehybrid",
        SSM,
        _heads(2, 0, 2, 0),
        logit_scale=1.0,
        residual_scale=1.0,
        embedding_scale=1.0,
        wants="blk.{1,3}.ssm_conv1d.bias",
    ),
    _model("lfm2", _heads(2, 0, 2, 0), shortconv__l_cache=3),
    _model("lfm2:window", _heads(2, 0, 2, 0), _window(512), shortconv__l_cache=3),
    _model("lfm2moe", EXPERTS, _heads(0, 2, 0, 2), shortconv__l_cache=3),
    *(
        _model(
            name,
            SSM,
            EXPERTS if name.endswith("moe") else {},
            attention__head_count_kv=[0, 2, 0, 0],
            feed_forward_length=[0, 0, 96, 0],
            wants="blk.{0,3}.ssm_conv1d.bias",
        )
        for name in ("nemotron_h", "nemotron_h_moe")
    ),
    _model("qwen3next", DELTA, EXPERTS, block_count=5, wants=DELTA_TENSORS.format("{0-2,4}")),
    _model("qwen35", DELTA, wants=DELTA_TENSORS.format("{0-2}")),
    _model("qwen35:listed", DELTA, attention__recurrent_layers=[0, 1, 1, 0], wants=DELTA_TENSORS.format("{1-2}")),
    _model("qwen35:drafting", DELTA, block_count=5, nextn_predict_layers=1, wants=DELTA_TENSORS.format("{0-2}")),
    _model("qwen35moe", DELTA, EXPERTS, full_attention_interval=2, wants=DELTA_TENSORS.format("{0,2}")),
    _model("kimi-linear", KDA, LATENT, EXPERTS, attention__head_count_kv=[0, 1, 0, 1]),
    _model(
        "bailingmoe3",
        KDA,
        LATENT,
        EXPERTS,
        attention__head_count_kv=[0, 1, 0, 1],
        rope__dimension_sections=[4, 6, 6, 0],
    ),
    _model(
        "kimi-k3",
        KDA,
        LATENT,
        EXPERTS,
        attention__head_count_kv=[0, 1, 0, 1],
        attn_res__block_size=12,
        activation__situ_beta=4.0,
        activation__situ_linear_beta=25.0,
        expert_latent_length=64,
        moe_latent_size=64,
    ),
    _model(
        "glm5-next",
        KDA,
        LATENT,
        EXPERTS,
        INDEXER,
        HYPER,
        attention__key_length=64,
        rope__dimension_count=0,
        attention__head_count_kv=[0, 1, 0, 1],
        attention__indexer__kpool=4,
        attention__indexer__kpool_select_tail=True,
    ),
    _model(
        "qwen4exp",
        DELTA,
        EXPERTS,
        INDEXER,
        HYPER,
        block_count=5,
        attention__indexer__key_length=64,
        attention__compress_ratios=[4] * 5,
        embedding_length_per_layer_input=32,
        ple__layers=[0],
        ple__ngram_size=3,
        ple__heads_per_ngram=2,
        ple__conv_kernel=4,
        ple__eos_token_id=0,
        ple__layer_multipliers=[1, 3, 5],
        ple__head_offsets=[0, 354, 708, 1062],
        ple__head_vocab_sizes=[354, 354, 354, 354],
        wants="per_layer_token_embd.weight 32 1416",
    ),
    _model("minimax-01", EXPERTS, full_attention_interval=2, residual_scale=1.0),
    # Draft blocks, in their own context.
    _model("deepseek2:drafting", EXPERTS, LATENT, DRAFTING),
    _model("cohere2moe:drafting", EXPERTS, _window(512), DRAFTING, logit_scale=1.0),
    _model("step35:drafting", EXPERTS, _window(512, [*ALTERNATE, True]), DRAFTING),
    _model(
        "mimo2:drafting",
        EXPERTS,
        _window(256, [*ALTERNATE, True]),
        DRAFTING,
        attention__key_length=64,
        attention__value_length=32,
        attention__head_count_kv=[2, 1, 2, 1, 1],
        wants="blk.*.attn_qkv.weight\nblk.4.ffn_gate.weight\nblk.4.ffn_down.weight\nblk.4.ffn_up.weight",
    ),
    _model("qwen3next:drafting", DELTA, EXPERTS, DRAFTING, wants=DELTA_TENSORS.format("{0-2}")),
    _model("qwen35moe:drafting", DELTA, EXPERTS, DRAFTING, wants=DELTA_TENSORS.format("{0-2}")),
    _model(
        "nemotron_h_moe:drafting",
        SSM,
        EXPERTS,
        DRAFTING,
        attention__head_count_kv=[0, 2, 0, 0, 2],
        feed_forward_length=[0, 0, 96, 0, 0],
        wants="blk.{0,3}.ssm_conv1d.bias",
    ),
    _model(
        "bailingmoe3:drafting",
        KDA,
        LATENT,
        EXPERTS,
        DRAFTING,
        attention__head_count_kv=[0, 1, 0, 1, 1],
        rope__dimension_sections=[4, 6, 6, 0],
    ),
    _model("qwen4exp:unpooled", DELTA, EXPERTS, INDEXER, HYPER, attention__indexer__key_length=64),
    _model(
        "glm5-next:drafting",
        KDA,
        LATENT,
        EXPERTS,
        INDEXER,
        HYPER,
        DRAFTING,
        attention__key_length=64,
        rope__dimension_count=0,
        attention__head_count_kv=[0, 1, 0, 1, 1],
        attention__indexer__kpool=4,
        attention__indexer__kpool_select_tail=True,
    ),
    _model(
        "qwen4exp:drafting",
        DELTA,
        EXPERTS,
        INDEXER,
        HYPER,
        DRAFTING,
        attention__indexer__key_length=64,
        attention__compress_ratios=[4] * 5,
    ),
    # Architectures of autumn 2026.
    _model("k2-horizon"),
    _model("chameleon"),
    _model("pockettts", attention__head_count_kv=4),
    _model("qwen3tts", rope__dimension_sections=[4, 6, 6, 0]),
    _model("maion-coder", EXPERTS, _window(512, ALTERNATE), moe_latent_size=64),
    _model("beam", EXPERTS, _window(512, ALTERNATE)),
    _model("kolibri1", EXPERTS, _window(512, [True, True, True, False])),
    _model(
        "muse-spark",
        EXPERTS,
        _window(512, ALTERNATE),
        post_norm_epsilon=1e-5,
        rope__freq_base_swa=1e4,
        final_logit_softcapping=30.0,
        logit_scale=1.0,
        moe_latent_size=64,
    ),
    _model("vllm-decision2", wants="decision.key.weight 128 64"),
    # No cache at all.
    _model(
        "clef",
        DELTA,
        rope__dimension_sections=[4, 6, 6, 0],
        decision__routing_block_count=1,
        decision__block_count=1,
        decision__head_count=2,
        wants=DELTA_TENSORS.format("{0-2}") + "\ndecision.proj_memory.weight 128 64\ndec.blk.0.ffn_up.weight 64 96",
    ),
    _model("gemma-embedding2", _window(512), pooling_type=1, embedding_length_per_layer_input=32),
    _model(
        "bert",
        {"/tokenizer.ggml.token_type_count": 2},
        attention__head_count_kv=None,
        attention__causal=False,
        pooling_type=1,
    ),
    _model("gemma-embedding", _window(512), pooling_type=1),
    _model("dream", attention__causal=False),
    _model("llada", attention__causal=False),
    # Models that are only draft models.
    _model("eagle3", target="llama", block_count=1, target_layers=[0, 1, 2], target_hidden_size=128),
    _model("dflash", target="llama", block_count=2, target_layers=[0, 1, 2], block_size=4),
    _model(
        "dflash:window",
        _window(256, [True, False]),
        target="llama",
        block_count=2,
        target_layers=[0, 1, 2],
        block_size=4,
    ),
    _model(
        "gemma4-assistant",
        _window(256, [True, False]),
        target="gemma4",
        block_count=2,
        nextn_predict_layers=2,
        attention__head_count_kv=[2, 1],
        rope__dimension_count=64,
        rope__dimension_count_swa=32,
        embedding_length=64,
        embedding_length_out=128,
        attention__key_length=64,
        attention__value_length=64,
        attention__key_length_swa=32,
        attention__value_length_swa=32,
    ),
)

SPECULATION = {"eagle3": "draft-eagle3", "dflash": "draft-dflash", "gemma4-assistant": "draft-mtp"}
"""llama-server's flags for drafting with such an architecture."""

PAIRS: tuple[tuple[str, str, str], ...] = (
    ("llama", "qwen2", ""),
    ("llama:moe", "gemma3", "--spec-type draft-simple"),
    ("gemma3", "llama:mqa", "--spec-type draft-simple"),
    ("qwen35", "llama", "--spec-type draft-simple"),
    ("deepseek2", "phi3", "--spec-type draft-simple"),
    ("llama", "deepseek2", "--spec-type draft-simple"),
    ("llama", "mamba2", ""),
    ("qwen35", "lfm2", ""),
    ("qwen35", "qwen35:drafting", "--spec-type draft-mtp"),
    ("qwen35", "qwen35:drafting", ""),
    ("llama", "eagle3", "--spec-type draft-eagle3"),
    ("qwen35", "eagle3", "--spec-type draft-eagle3 --spec-draft-n-max 2"),
    ("llama", "dflash", ""),
    ("llama", "dflash:window", "--spec-type draft-dflash"),
    ("gemma4", "gemma4-assistant", "--spec-type draft-mtp"),
)
"""A model, its draft model (``-md``), and the flags for it."""
