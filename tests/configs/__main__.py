"""Writes ``converted.json``: configurations of every family, and the keys that llama.cpp's converter writes for each.

    python -m tests.configs LLAMA_CPP_TREE

The configurations are those of ``published.json`` (typed from the models' public pages, only what matters for the
shape), and two of each of transformers' own classes that llama.cpp converts: one as ``save_pretrained`` writes it, one
with some values changed.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .converter import Converter

HERE = Path(__file__).parent
PUBLISHED = HERE / "published.json"
CONVERTED = HERE / "converted.json"

Config = dict[str, Any]

_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
)
_CHANGED = (
    "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim", "v_head_dim", "kv_lora_rank",
    "sliding_window", "index_head_dim", "mamba_d_state", "linear_num_value_heads", "conv_L_cache", "intermediate_size",
)  # fmt: skip
_BORING = re.compile(
    r"token|dropout|eps$|init|bias|_id|label|output_|dtype|norm_|return_|use_cache|tie_|act$|activation|attn_impl|"
    r"transformers|chunk_size_feed|problem|is_enc|coef|jitter|quant|temperature|scaling|multiplier|softcap|rope|clip"
)
_UNUSED = re.compile(r"rope|epsilon|scale|activation|sparsity|weights|gating|suppress|swiglu")
_NEEDED: dict[str, Config] = {  # keys dropped by the newest classes but read by the converter
    "cohere2": {"rotary_pct": 1.0},
    "gpt2": {"n_ctx": 1024},
    "gpt_neox": {"rotary_pct": 0.25},
    "minimax_m2": {"rotary_dim": 64},
    "t5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
    "gemma4_unified": {"expert_intermediate_size": None},
    "falcon_h1": {"head_dim": 128, "rope_theta": 1e11},
}
_LEFT_OUT = {
    "bamba", "dbrx", "deepseek_v4", "dots3_note", "dots3_note_text", "glm5_next", "gpt-sw3", "hunyuan_v1_moe",
    "kimi_linear", "lfm2_moe", "mimo_v2_flash", "minimax_m3_vl", "muse_glimmer_assistant", "nomic_bert", "qwen4_exp",
    "qwen4_exp_text", "step3p7",
}  # fmt: skip
"""Their classes write keys that the converter cannot read: see ``published.json``."""
_BY_FILE = {"published/nemotron_h_8b"}
"""The class changes the model: here feed-forward layers become Mamba layers."""
_UNLIKE = {
    "falcon": "the converter takes num_kv_heads though multi_query says that there is one",
    "nemotron_h": "the converter counts the class's mlp layers as Mamba",
    "exaone": "the class is a Llama by another name, which the converter takes at its word",
    "sarvam_moe": "the same, a GLM",
    "sarvam_mla": "the same, a DeepSeek",
}
"""Families whose class and converter disagree; ``published.json`` has the published ones where possible."""


def _classes() -> Iterator[tuple[str, str, Any]]:
    """model_type, class name, configuration class."""
    import conversion
    from transformers.models.auto import configuration_auto, modeling_auto

    for model_type in configuration_auto.CONFIG_MAPPING_NAMES:
        names: list[str] = []
        for mapping in _MAPPINGS:
            found = getattr(modeling_auto, mapping, {}).get(model_type, ())
            names += [found] if isinstance(found, str) else list(found)
        name = next((each for each in names if each in conversion.TEXT_MODEL_MAP), None)
        if name is not None and model_type not in _LEFT_OUT and model_type not in _UNLIKE:
            yield model_type, name, configuration_auto.CONFIG_MAPPING[model_type]


def _text(config: Config) -> Config:
    for name in ("thinker_config", "text_config"):
        if isinstance(config.get(name), dict):
            config = config[name]
    return config


def _without_boring(config: Config) -> Config:
    kept = {key: value for key, value in config.items() if not _BORING.search(key)}
    kept = {key: value for key, value in kept.items() if key not in ("vision_config", "audio_config", "talker_config")}
    kept = {key: value for key, value in kept.items() if value is not None or re.search("head|layer|window", key)}
    return {
        key: _without_boring(value) if isinstance(value, dict) and "config" in key else value
        for key, value in kept.items()
    }


def _variants(model_type: str, name: str, config_class: Any) -> Iterator[tuple[str, Config]]:
    more = _NEEDED.get(model_type, {})
    saved = json.loads(config_class(**more).to_json_string(use_diff=True))
    yield f"{model_type}/saved", {**_without_boring(saved), "architectures": [name], **more}
    random.seed(model_type)
    for _ in range(40):
        full = json.loads(json.dumps(config_class(**more).to_dict(), default=str))
        text = _text(full)
        text |= {"num_hidden_layers": 12} if "num_hidden_layers" in text else {}
        for key in list(text):
            if key in _CHANGED and isinstance(text[key], int) and key != "num_hidden_layers":
                text[key] = random.choice([text[key], text[key] * 2, max(text[key] // 2, 1)])
            elif isinstance(text[key], list) and len(text[key]) > 6:
                del text[key]  # lists by layer, which the class works out
        try:
            config_class(**full)
        except Exception:  # noqa: BLE001, S112 - the classes check that heads divide and the like
            continue
        yield f"{model_type}/changed", {**_without_boring(full), "architectures": [name], **more}
        return


def main() -> int:
    converter = Converter(Path(sys.argv[1]))
    configs = {f"published/{name}": config for name, config in json.loads(PUBLISHED.read_text()).items()}
    for model_type, name, config_class in _classes():
        try:
            configs |= dict(_variants(model_type, name, config_class))
        except Exception as error:  # noqa: BLE001 - a class that cannot be made without arguments
            print(f"{model_type}: {error!r:.100}", file=sys.stderr)
    lines = []
    for name, config in configs.items():
        try:
            metadata = converter.convert(config, library=name not in _BY_FILE)
        except Exception as error:  # noqa: BLE001 - whatever the converter says
            print(f"{name}: the converter says {type(error).__name__} {error!s:.100}", file=sys.stderr)
            continue
        kept = {key: value for key, value in metadata.items() if not _UNUSED.search(key)}
        lines.append(f"{json.dumps(name)}: {json.dumps({'config': config, 'gguf': kept}, separators=(',', ':'))}")
    CONVERTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{CONVERTED.name}: {len(lines)} configurations, {CONVERTED.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
