"""The model families that llama.cpp converts: the one table from names in a ``config.json`` to an architecture.

A row names the ``model_type`` values of transformers and the class names in ``architectures``, and the rules for what
differs from Llama. Source: llama.cpp's ``conversion/__init__.py`` (TEXT_MODEL_MAP) and the class of each name, b11434,
October 2026. A new family is a row here and a sample in ``tests/configs``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llamatel.plan import config_rules as rules
from llamatel.plan import latent_rules as latents
from llamatel.plan import recurrent_rules as states
from llamatel.plan import window_rules as windows
from llamatel.plan.config_rules import Rule
from llamatel.plan.config_values import KV_HEADS


@dataclass(frozen=True, slots=True)
class Family:
    """One row. ``heads``: where KV heads come from, a key of the configuration or the rules."""

    architecture: str
    types: str
    """Values of ``model_type``, in lower case; a file without one gets the library's defaults of the first."""
    classes: str = ""
    """Names in ``architectures``."""
    rules: tuple[Rule, ...] = ()
    heads: Literal["given", "by rule"] = "given"
    kv_names: tuple[str, ...] = KV_HEADS
    counts_blocks: bool = False
    """Whether a list of blocks may replace the number of layers."""
    context: tuple[str, ...] = ()
    """Names of the trained context that take precedence over the usual ones."""
    outermost: bool = False
    """Whether the names at the top level decide, even if the text part names another family."""
    ignored: str = ""
    """Keys with names of heads or layers that llama.cpp's converter ignores."""


def _mla(architecture: str, types: str, classes: str, *more: Rule) -> Family:
    return Family(architecture, types, classes, (*more, latents.latent), heads="by rule")


def _mha(architecture: str, types: str, classes: str, *more: Rule) -> Family:
    return Family(architecture, types, classes, (rules.kv_heads_as_heads, *more), heads="by rule")


_LAST_4 = windows.sliding_layers(windows.last_of(4))

FAMILIES: tuple[Family, ...] = (
    # As Llama: K and V of every KV head in every layer.
    Family(
        "llama",
        "llama mistral mixtral internlm3 iquestcoder vllama3",
        "LLaMAForCausalLM LlamaForCausalLM LlamaModel MistralForCausalLM MixtralForCausalLM VLlama3ForCausalLM "
        "IQuestCoderForCausalLM InternLM3ForCausalLM",
    ),
    Family("llama-embed", "llama_bidirec", "LlamaBidirectionalModel"),
    Family("apertus", "apertus", "ApertusForCausalLM"),
    Family("arcee", "arcee", "ArceeForCausalLM"),
    Family("arctic", "arctic", "ArcticForCausalLM"),
    Family("bailingmoe", "bailing_moe", "BailingMoeForCausalLM"),
    Family(
        "bailingmoe2",
        "bailing_moe_v2 bailing_moe_linear_v2 sarvam_moe",
        "BailingMoeV2ForCausalLM SarvamMoEForCausalLM modeling_sarvam_moe.SarvamMoEForCausalLM",
        (rules.drafting(),),
    ),
    Family("bitnet", "bitnet", "BitnetForCausalLM BitNetForCausalLM"),
    Family("chameleon", "chameleon", "ChameleonForCausalLM ChameleonForConditionalGeneration"),
    Family("cogvlm", "cogvlm", "CogVLMForCausalLM"),
    Family("command-r", "cohere", "CohereForCausalLM", context=("model_max_length",)),
    Family("deepseek", "deepseek", "DeepseekForCausalLM"),
    Family("dots1", "dots1", "Dots1ForCausalLM"),
    Family("ernie4_5", "ernie4_5", "Ernie4_5ForCausalLM Ernie4_5_ForCausalLM"),
    Family("ernie4_5-moe", "ernie4_5_moe", "Ernie4_5_MoeForCausalLM"),
    Family("exaone", "exaone", "ExaoneForCausalLM"),
    Family("gemma", "gemma", "GemmaForCausalLM"),
    Family("glm4", "glm4 glm4v_text glm4v", "Glm4ForCausalLM Glm4vForConditionalGeneration"),
    Family("glm4", "glm_ocr_text glm_ocr", "GlmOcrForConditionalGeneration", (rules.drafting(),)),
    Family(
        "glm4moe",
        "glm4_moe glm4v_moe_text glm4v_moe solar_open",
        "Glm4MoeForCausalLM Glm4vMoeForConditionalGeneration SolarOpenForCausalLM",
        (rules.drafting(),),
    ),
    Family("granite", "granite", "GraniteForCausalLM", (rules.no_head_length,)),
    Family(
        "granitemoe",
        "granitemoe granitemoeshared",
        "GraniteMoeForCausalLM GraniteMoeSharedForCausalLM",
        (rules.no_head_length,),
    ),
    Family("grok", "grok-1 grok", "GrokForCausalLM Grok1ForCausalLM"),
    Family("grovemoe", "grove_moe", "GroveMoeForCausalLM modeling_grove_moe.GroveMoeForCausalLM"),
    Family("hunyuan-dense", "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", ignored="cla_share_factor"),
    Family("hunyuan-moe", "hunyuan_v1_moe hunyuan", "HunYuanMoEV1ForCausalLM", ignored="cla_share_factor"),
    Family("hunyuan_vl", "hunyuan_vl_text hunyuan_vl", "HunYuanVLForConditionalGeneration"),
    Family("hy_v3", "hy_v3", "HYV3ForCausalLM", (rules.drafting(),)),
    Family("internlm2", "internlm2", "InternLM2ForCausalLM"),
    Family("jais2", "jais2", "Jais2ForCausalLM"),
    Family("maincoder", "maincoder", "MaincoderForCausalLM"),
    Family("minicpm", "minicpm", "MiniCPMForCausalLM"),
    Family("minimax-m2", "minimax_m2", "MiniMaxM2ForCausalLM"),
    Family("mistral3", "ministral3", "Mistral3ForConditionalGeneration Ministral3ForCausalLM"),
    Family("nanbeige", "nanbeige", "NanbeigeForCausalLM", (rules.nanbeige,)),
    Family("nemotron", "nemotron", "NemotronForCausalLM"),
    Family("olmo", "olmo", "OlmoForCausalLM OLMoForCausalLM"),
    Family("olmoe", "olmoe", "OlmoeForCausalLM"),
    Family("orion", "orion", "OrionForCausalLM"),
    Family("paddleocr", "paddleocr_vl_text paddleocr_vl", "PaddleOCRVLForConditionalGeneration"),
    Family("pangu-embedded", "panguembedded pangu_embedded", "PanguEmbeddedForCausalLM"),
    Family("phi3", "phi3 phi4mm phi3_v", "Phi3ForCausalLM Phi4ForCausalLMV", (rules.no_head_length,)),
    Family("phimoe", "phimoe", "PhiMoEForCausalLM", (rules.no_head_length,)),
    Family("pockettts", "pocket_tts", "PocketTTSModel"),
    Family(
        "qwen2",
        "qwen2 qwen2_audio kormo dots_ocr",
        "Qwen2Model Qwen2ForCausalLM Qwen2AudioForConditionalGeneration KORMoForCausalLM "
        "AudioFlamingo3ForConditionalGeneration DotsOCRForCausalLM",
    ),
    Family("qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM"),
    Family(
        "qwen2vl",
        "qwen2_vl_text qwen2_vl qwen2_5_vl_text qwen2_5_vl qwen2_5_omni_text qwen2_5_omni qwen2_5_omni_thinker",
        "Qwen2VLForConditionalGeneration Qwen2VLModel Qwen2_5OmniModel Qwen2_5_VLForConditionalGeneration",
    ),
    Family("qwen3", "qwen3 step_vl", "Qwen3ForCausalLM Qwen3Model StepVLForConditionalGeneration"),
    Family("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
    Family(
        "qwen3vl",
        "qwen3_vl_text qwen3_vl qwen3_asr",
        "Qwen3VLForConditionalGeneration Qwen3ASRForConditionalGeneration",
    ),
    Family(
        "qwen3vlmoe",
        "qwen3_vl_moe_text qwen3_vl_moe qwen3_omni_moe_text qwen3_omni_moe",
        "Qwen3VLMoeForConditionalGeneration Qwen3OmniMoeForConditionalGeneration",
    ),
    Family("seed_oss", "seed_oss", "SeedOssForCausalLM"),
    Family("smollm3", "smollm3", "SmolLM3ForCausalLM"),
    Family(
        "stablelm",
        "stablelm stablelm_epoch",
        "StableLMEpochForCausalLM StableLmForCausalLM LlavaStableLMEpochForCausalLM",
        (rules.no_head_length,),
    ),
    Family("starcoder2", "starcoder2", "Starcoder2ForCausalLM"),
    # Other heads and shapes.
    _mha("baichuan", "baichuan", "BaiChuanForCausalLM BaichuanForCausalLM"),
    _mha("bloom", "bloom", "BloomForCausalLM BloomModel", rules.seq_length),
    _mha("gpt2", "gpt2 gpt-sw3", "GPT2LMHeadModel RuGPT3XLForCausalLM"),
    _mha("gptneox", "gpt_neox", "GPTNeoXForCausalLM"),
    _mha("jais", "jais", "JAISLMHeadModel"),
    _mha("phi2", "phi", "PhiForCausalLM"),
    _mha("qwen", "qwen", "QWenLMHeadModel", rules.no_kv_channels),
    _mha("talkie", "talkie", "TalkieForCausalLM"),
    _mha("xverse", "xverse", "XverseForCausalLM"),
    Family(
        "chatglm",
        "chatglm glm",
        "GlmForCausalLM ChatGLMModel ChatGLMForConditionalGeneration",
        (rules.chatglm,),
        heads="by rule",
    ),
    Family("codeshell", "codeshell", "CodeShellForCausalLM", kv_names=("num_query_groups",)),
    Family("dbrx", "dbrx", "DbrxForCausalLM", (rules.nested_attention,), heads="by rule"),
    Family("deci", "nemotron-nas deci", "DeciLMForCausalLM", (rules.deci,), heads="by rule"),
    Family(
        "falcon",
        "falcon refinedweb refinedwebmodel",
        "FalconForCausalLM RWForCausalLM",
        (rules.falcon,),
        heads="by rule",
    ),
    Family("hrm_text", "hrm_text", "HrmTextForCausalLM", (rules.kv_heads_as_heads, rules.hrm_text), heads="by rule"),
    Family("mpt", "mpt", "MPTForCausalLM", (rules.nested_attention,), heads="by rule"),
    Family("openelm", "openelm", "OpenELMForCausalLM", (rules.openelm,), heads="by rule", ignored="num_gqa_groups"),
    Family(
        "plamo",
        "plamo",
        "PlamoForCausalLM",
        (rules.fixed(attention__head_count_kv=5, context_length=4096),),
        heads="by rule",
        ignored="n_shared_head num_key_value_heads",
    ),
    Family(
        "refact",
        "gpt_refact",
        "GPTRefactForCausalLM",
        (rules.fixed(attention__head_count_kv=1),),
        heads="by rule",
        ignored="multi_query",
    ),
    Family(
        "starcoder",
        "gpt_bigcode",
        "GPTBigCodeForCausalLM",
        (rules.fixed(attention__head_count_kv=1),),
        heads="by rule",
        ignored="multi_query",
    ),
    # Sliding windows.
    Family("afmoe", "afmoe", "AfmoeForCausalLM", (windows.window(),)),
    Family("cohere2", "cohere2", "Cohere2ForCausalLM", (windows.window(),)),
    Family("cohere2moe", "cohere2_moe", "Cohere2MoeForCausalLM", (windows.cohere2moe, rules.drafting())),
    Family("exaone4", "exaone4", "Exaone4ForCausalLM", (windows.exaone4,)),
    Family(
        "exaone4",
        "exaone4_5 exaone4_5_text",
        "Exaone4_5_ForConditionalGeneration",
        (windows.exaone4, rules.drafting()),
        outermost=True,
    ),
    Family(
        "exaone-moe", "exaone_moe", "ExaoneMoEForCausalLM ExaoneMoeForCausalLM", (windows.exaone4, rules.drafting())
    ),
    Family("gemma2", "gemma2", "Gemma2ForCausalLM", (windows.window(),)),
    Family(
        "gemma3",
        "gemma3_text gemma3 shieldgemma2",
        "Gemma3ForCausalLM Gemma3ForConditionalGeneration",
        (windows.gemma3,),
    ),
    Family("gemma-embedding", "gemma3_text", "Gemma3TextModel", (windows.window(),)),
    Family(
        "gemma3n",
        "gemma3n_text gemma3n",
        "Gemma3nForCausalLM Gemma3nForConditionalGeneration",
        (windows.window(), windows.sliding_layers(windows.last_of(5))),
    ),
    Family(
        "gemma4",
        "gemma4_text gemma4 gemma4_unified_text gemma4_unified",
        "Gemma4ForConditionalGeneration Gemma4ForCausalLM Gemma4UnifiedForConditionalGeneration",
        (windows.gemma4,),
    ),
    Family("gpt-oss", "gpt_oss", "GptOssForCausalLM", (windows.window(),)),
    Family(
        "granite_swa",
        "granite_swa granitemoe_swa",
        "GraniteSWAForCausalLM GraniteMoeSWAForCausalLM",
        (rules.no_head_length, windows.window(), windows.sliding_layers(windows.first_of(4))),
    ),
    Family("laguna", "laguna", "LagunaForCausalLM", (windows.laguna,)),
    Family("llama4", "llama4_text llama4", "Llama4ForCausalLM Llama4ForConditionalGeneration", (windows.llama4,)),
    Family("maple", "maple", "MapleForCausalLM", (windows.window(), windows.sliding_layers())),
    Family("mellum", "mellum", "MellumForCausalLM", (windows.mellum,)),
    Family("mimo2", "mimo_v2_flash mimo_v2", "MiMoV2FlashForCausalLM MiMoV2ForCausalLM", (windows.mimo2,)),
    Family(
        "muse-glimmer",
        "muse_glimmer_text muse_glimmer",
        "MuseGlimmerForConditionalGeneration",
        (windows.window(), windows.sliding_layers(windows.from_last(4))),
    ),
    Family("olmo2", "olmo2", "Olmo2ForCausalLM"),
    Family("olmo2", "olmo3", "Olmo3ForCausalLM", (windows.window(), _LAST_4)),
    Family("plamo3", "plamo3", "Plamo3ForCausalLM PLaMo3ForCausalLM", (windows.plamo3,)),
    Family("smallthinker", "smallthinker", "SmallThinkerForCausalLM", (windows.smallthinker,)),
    Family("spark2_5", "spark2_5", "Spark2_5ForCausalLM", (windows.window(), windows.sliding_layers())),
    Family(
        "step35",
        "step3p5 step3p7",
        "Step3p5ForCausalLM Step3p7ForConditionalGeneration",
        (rules.drafting(), windows.step35),
        heads="by rule",
    ),
    # One latent vector for all heads; indexers.
    _mla(
        "deepseek2",
        "deepseek_v2 deepseek_v3 deepseekv2 deepseekv3 kimi_k2 kimi_k25 kimi_vl deepseek_vl_v2 youtu youtu_vl "
        "sarvam_mla",
        "DeepseekV2ForCausalLM DeepseekV3ForCausalLM KimiVLForConditionalGeneration KimiK25ForConditionalGeneration "
        "YoutuForCausalLM YoutuVLForConditionalGeneration",
    ),
    Family("deepseek2-ocr", "", "DeepseekOCRForCausalLM DeepseekOCR2ForCausalLM UnlimitedOCRForCausalLM"),
    _mla("deepseek2", "glm4_moe_lite", "Glm4MoeLiteForCausalLM", rules.drafting()),
    _mla("mistral4", "mistral4", ""),
    _mla("deepseek32", "deepseek_v32", "DeepseekV32ForCausalLM", rules.drafting(), latents.indexer),
    _mla("glm-dsa", "glm_moe_dsa", "GlmMoeDsaForCausalLM", latents.indexer_types, rules.drafting(), latents.indexer),
    _mla("hy_v4", "hy_v4", "HYV4ForCausalLM", latents.hy_v4),
    _mla(
        "dots3note",
        "dots3_note_text dots3_note",
        "Dots3NoteForCausalLM Dots3NoteForConditionalGeneration Dots3NoteTextForCausalLM",
        latents.dots3note,
    ),
    Family("minicpm3", "minicpm3", "MiniCPM3ForCausalLM", (rules.no_head_length, latents.full_heads_of_lora)),
    Family("plm", "plm", "PLMForCausalLM", (latents.full_heads_of_lora, latents.value_length)),
    Family(
        "minimax-m3",
        "minimax_m3_vl_text minimax_m3_vl minimax_m3",
        "MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration",
        (latents.minimax_m3,),
    ),
    Family("deepseek4", "deepseek_v4", "DeepseekV4ForCausalLM", (latents.deepseek4,), heads="by rule"),
    # A state per sequence, alone or together with attention.
    Family(
        "mamba",
        "mamba falcon_mamba",
        "MambaForCausalLM MambaLMHeadModel FalconMambaForCausalLM",
        (states.mamba,),
        heads="by rule",
    ),
    Family("mamba2", "mamba2", "Mamba2ForCausalLM", (states.mamba2,), heads="by rule"),
    Family(
        "rwkv6",
        "rwkv6",
        "Rwkv6ForCausalLM",
        (states.rwkv("head_size"),),
        heads="by rule",
        ignored="attention_hidden_size head_size_divisor",
    ),
    Family(
        "rwkv6qwen2",
        "rwkv6qwen2",
        "RWKV6Qwen2ForCausalLM",
        (states.rwkv(), rules.fixed(token_shift_count=1)),
        heads="by rule",
    ),
    Family(
        "rwkv7", "rwkv7", "RWKV7ForCausalLM Rwkv7ForCausalLM", (states.rwkv("head_size", "head_dim"),), heads="by rule"
    ),
    Family(
        "arwkv7",
        "rwkv_hybrid",
        "RwkvHybridForCausalLM",
        (states.rwkv("head_size"), rules.fixed(token_shift_count=1)),
        heads="by rule",
        ignored="num_wkv_heads wkv_layers",
    ),
    Family("falcon-h1", "falcon_h1", "FalconH1ForCausalLM", (states.falcon_h1,)),
    Family(
        "granitehybrid",
        "granitemoehybrid bamba",
        "GraniteMoeHybridForCausalLM BambaForCausalLM",
        (rules.no_head_length, states.granite_hybrid),
    ),
    Family("jamba", "jamba", "JambaForCausalLM", (rules.no_head_length, states.jamba)),
    Family(
        "nemotron_h",
        "nemotron_h nemotron_h_puzzle",
        "NemotronHForCausalLM NemotronHPuzzleForCausalLM",
        (states.nemotron_h,),
        counts_blocks=True,
    ),
    Family(
        "plamo2",
        "plamo2",
        "Plamo2ForCausalLM PLaMo2ForCausalLM",
        (states.plamo2,),
        ignored="attention_window_size full_attention_idx",
    ),
    Family("lfm2", "lfm2", "Lfm2ForCausalLM LFM2ForCausalLM Lfm2Model Lfm2BidirectionalModel", (states.lfm2,)),
    Family("lfm2moe", "lfm2_moe", "Lfm2MoeForCausalLM", (states.lfm2,)),
    Family("qwen3next", "qwen3_next", "Qwen3NextForCausalLM", (states.delta_net,)),
    Family(
        "qwen35",
        "qwen3_5_text qwen3_5",
        "Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration MiniCPMV4_6ForConditionalGeneration",
        (states.delta_net,),
    ),
    Family(
        "qwen35moe",
        "qwen3_5_moe_text qwen3_5_moe",
        "Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration",
        (states.delta_net,),
    ),
    Family(
        "qwen4exp",
        "qwen4_exp_text qwen4_exp",
        "Qwen4ExpForCausalLM Qwen4ExpForConditionalGeneration",
        (states.qwen4exp,),
    ),
    Family("minimax-01", "minimax_text_01 minimax_m1", "MiniMaxText01ForCausalLM MiniMaxM1ForCausalLM"),
    Family(
        "kimi-linear",
        "kimi_linear",
        "KimiLinearForCausalLM KimiLinearModel",
        (states.kimi_linear,),
        heads="by rule",
        ignored="mla_use_nope",
    ),
    Family(
        "kimi-k3",
        "kimi_k3",
        "KimiK3ForConditionalGeneration",
        (states.kimi_k3,),
        heads="by rule",
        outermost=True,
        ignored="mla_use_nope",
    ),
    Family(
        "glm5-next",
        "glm5_next_text glm5_next",
        "Glm5NextForConditionalGeneration",
        (states.glm5_next,),
        heads="by rule",
        ignored="mla_use_nope",
    ),
    Family(
        "bailingmoe3",
        "bailing_moe_v3",
        "BailingMoeV3ForCausalLM BailingMoeV3VLForConditionalGeneration",
        (states.bailing3,),
        heads="by rule",
    ),
    # No cache.
    Family(
        "bert",
        "bert distilbert camembert",
        "BertModel BertForMaskedLM BertForSequenceClassification CamembertModel DistilBertModel DistilBertForMaskedLM "
        "DistilBertForSequenceClassification",
        heads="by rule",
    ),
    Family(
        "bert",
        "roberta xlm-roberta",
        "RobertaModel RobertaForSequenceClassification XLMRobertaModel XLMRobertaForSequenceClassification",
        (rules.old_bert_positions,),
        heads="by rule",
    ),
    Family("dream", "dream", "DreamModel", ignored="max_window_layers"),
    Family("eurobert", "eurobert", "EuroBertModel JinaEmbeddingsV5Model"),
    Family("jina-bert-v2", "jina_bert_v2", "JinaBertModel JinaBertForMaskedLM", heads="by rule"),
    Family("llada", "llada", "LLaDAModelLM", heads="by rule"),
    Family("llada-moe", "llada_moe", "LLaDAMoEModel LLaDAMoEModelLM", heads="by rule"),
    Family(
        "modern-bert",
        "modernbert",
        "ModernBertModel ModernBertForMaskedLM ModernBertForSequenceClassification",
        (windows.modern_bert,),
        heads="by rule",
    ),
    Family("neo-bert", "neobert", "NeoBERT NeoBERTLMHead NeoBERTForSequenceClassification", heads="by rule"),
    Family("nomic-bert", "nomic_bert", "NomicBertModel", heads="by rule"),
    Family("rnd1", "rnd1", "RND1"),
    Family(
        "t5",
        "t5 mt5 umt5",
        "T5WithLMHeadModel T5ForConditionalGeneration MT5ForConditionalGeneration UMT5ForConditionalGeneration "
        "UMT5Model",
        (rules.t5,),
        heads="by rule",
    ),
    Family("t5encoder", "", "T5EncoderModel", (rules.t5,), heads="by rule"),
)

BY_TYPE: Mapping[str, Family] = {name: row for row in reversed(FAMILIES) for name in row.types.split()}
BY_CLASS: Mapping[str, Family] = {name: row for row in FAMILIES for name in row.classes.split()}
