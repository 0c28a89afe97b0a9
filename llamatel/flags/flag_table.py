"""llama-server's flags: names, values, environment variable, the setting that each one changes, and its role.

One row a flag, in the order of ``llama-server --help``: names (after ``/`` those that switch it off), the number of its
values, its variable without ``LLAMA_ARG_`` (``$`` before one with another prefix), the field of ``ServerSettings`` with
the kind of value (``flag_values.py``), and its role:

- ``plan``: changes what is allocated, and plans account for it;
- ``not counted``: changes what is allocated, but plans do not account for it: they are not exact, and may not state
  "does not fit";
- ``behaviour``: shown with a server's settings;
- ``launch``: read when llamatel starts or polls a server, not shown;
- ``removed``: llama-server refuses it, as builds before spring 2026 did not.

Flags without a role neither allocate nor matter here. Source: ``--help`` of the builds in ``BUILDS``; a test compares
the table with the installed builds.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

BUILDS = "llama-server of October and November 2026 (0.5.0-dev to 0.7.0)"

Role = Literal["", "plan", "not counted", "behaviour", "launch", "removed"]

_TABLE = """
    -h --help --usage | 0
    --version | 0
    -cl --cache-list | 0
    --completion-bash | 0
    -t --threads | 1 | THREADS
    -tb --threads-batch | 1
    -C --cpu-mask | 1
    -Cr --cpu-range | 1
    --cpu-strict | 1
    --prio | 1
    --poll | 1
    -Cb --cpu-mask-batch | 1
    -Crb --cpu-range-batch | 1
    --cpu-strict-batch | 1
    --prio-batch | 1
    --poll-batch | 1
    -c --ctx-size | 1 | CTX_SIZE | ctx_size int | plan
    -n --predict --n-predict | 1 | N_PREDICT
    -b --batch-size | 1 | BATCH | batch_size int | plan
    -ub --ubatch-size | 1 | UBATCH | ubatch_size int | plan
    --keep | 1
    --swa-full | 0 | SWA_FULL | swa_full switch | plan
    -fa --flash-attn | 1 | FLASH_ATTN | flash_attn on/off/auto | plan
    --perf / --no-perf | 0 | PERF
    -e --escape / --no-escape | 0
    --rope-scaling | 1 | ROPE_SCALING_TYPE
    --rope-scale | 1 | ROPE_SCALE
    --rope-freq-base | 1 | ROPE_FREQ_BASE
    --rope-freq-scale | 1 | ROPE_FREQ_SCALE
    --yarn-orig-ctx | 1 | YARN_ORIG_CTX
    --yarn-ext-factor | 1 | YARN_EXT_FACTOR
    --yarn-attn-factor | 1 | YARN_ATTN_FACTOR
    --yarn-beta-slow | 1 | YARN_BETA_SLOW
    --yarn-beta-fast | 1 | YARN_BETA_FAST
    -kvo --kv-offload / -nkvo --no-kv-offload | 0 | KV_OFFLOAD | kv_offload switch | plan
    --repack / -nr --no-repack | 0 | REPACK
    --no-host | 0 | NO_HOST
    -ctk --cache-type-k | 1 | CACHE_TYPE_K | cache_type_k cache-type | plan
    -ctv --cache-type-v | 1 | CACHE_TYPE_V | cache_type_v cache-type | plan
    -dt --defrag-thold | 1 | DEFRAG_THOLD
    --rpc | 1 | RPC | rpc_servers names | not counted
    -lm --load-mode | 1 | LOAD_MODE | | not counted
    -lzm --lazy-mode | 1 | LAZY_MODE | | not counted
    --numa | 1 | NUMA
    -dev --device | 1 | DEVICE | devices names | plan
    --list-devices | 0
    -ot --override-tensor | 1 | OVERRIDE_TENSOR | tensor_overrides overrides | plan
    -cmoe --cpu-moe | 0 | CPU_MOE | tensor_overrides cpu-moe | plan
    -ncmoe --n-cpu-moe | 1 | N_CPU_MOE | tensor_overrides n-cpu-moe | plan
    --moe-cache-mib | 1 | MOE_CACHE_MIB | moe_cache_mib int | plan
    -ncffn --n-cpu-ffn | 1 | N_CPU_FFN | tensor_overrides n-cpu-ffn | plan
    -ngl --gpu-layers --n-gpu-layers | 1 | N_GPU_LAYERS | gpu_layers layers | plan
    -sm --split-mode | 1 | SPLIT_MODE | split_mode split-mode | plan
    -ts --tensor-split | 1 | TENSOR_SPLIT | tensor_split shares | plan
    -mg --main-gpu | 1 | MAIN_GPU | main_gpu int | plan
    -fit --fit | 1 | FIT | fit on/off | plan
    -fitt --fit-target | 1 | FIT_TARGET | fit_target_mib mibs | plan
    -fitc --fit-ctx | 1 | FIT_CTX | fit_ctx int | plan
    --check-tensors | 0
    --override-kv | 1 | | | not counted
    --op-offload / --no-op-offload | 0
    --lora | 1 | | lora_adapters files | not counted
    --lora-scaled | 1 | | lora_adapters scaled-files | not counted
    --control-vector | 1 | | | not counted
    --control-vector-scaled | 1 | | | not counted
    --control-vector-layer-range | 2
    -m --model | 1 | MODEL | model text | plan
    -mu --model-url | 1 | MODEL_URL | model text | plan
    -dr --docker-repo | 1 | DOCKER_REPO | | not counted
    -hf -hfr --hf-repo | 1 | HF_REPO | model text | plan
    -hff --hf-file | 1 | HF_FILE | hf_file text | plan
    -hft --hf-token | 1 | $HF_TOKEN
    --log-disable | 0 | | log_disable switch | launch
    --log-file | 1 | LOG_FILE | log_file text | launch
    --log-jsonl / --no-log-jsonl | 0 | LOG_JSONL | log_jsonl switch | launch
    --log-colors | 1 | LOG_COLORS
    -v --verbose --log-verbose | 0 | | verbosity verbose | launch
    --offline | 0 | OFFLINE
    -lv --verbosity --log-verbosity | 1 | LOG_VERBOSITY | verbosity int | launch
    --log-prefix / --no-log-prefix | 0 | LOG_PREFIX
    --log-timestamps / --no-log-timestamps | 0 | LOG_TIMESTAMPS
    --spec-draft-type-k -ctkd --cache-type-k-draft | 1 | SPEC_DRAFT_CACHE_TYPE_K | draft_cache_type_k cache-type | plan
    --spec-draft-type-v -ctvd --cache-type-v-draft | 1 | SPEC_DRAFT_CACHE_TYPE_V | draft_cache_type_v cache-type | plan
    --samplers | 1
    -s --seed | 1
    --sampler-seq --sampling-seq | 1
    --ignore-eos | 0
    --temp --temperature | 1 | TEMPERATURE
    --top-k | 1 | TOP_K
    --top-p | 1 | TOP_P
    --min-p | 1 | MIN_P
    --top-nsigma --top-n-sigma | 1
    --xtc-probability | 1
    --xtc-threshold | 1
    --typical --typical-p | 1
    --repeat-last-n | 1
    --repeat-penalty | 1 | REPEAT_PENALTY
    --presence-penalty | 1 | PRESENCE_PENALTY
    --frequency-penalty | 1 | FREQUENCY_PENALTY
    --dry-multiplier | 1
    --dry-base | 1
    --dry-allowed-length | 1
    --dry-penalty-last-n | 1
    --dry-sequence-breaker | 1
    --adaptive-target | 1
    --adaptive-decay | 1
    --dynatemp-range | 1
    --dynatemp-exp | 1
    --mirostat | 1
    --mirostat-lr | 1
    --mirostat-ent | 1
    -l --logit-bias | 1
    --grammar | 1
    --grammar-file | 1
    -j --json-schema | 1
    -jf --json-schema-file | 1
    -bs --backend-sampling | 0 | BACKEND_SAMPLING
    --spec-draft-hf -hfd -hfrd --hf-repo-draft | 1 | SPEC_DRAFT_HF_REPO | draft_model text | plan
    --spec-draft-threads -td --threads-draft | 1
    --spec-draft-threads-batch -tbd --threads-batch-draft | 1
    --spec-draft-cpu-mask -Cd --cpu-mask-draft | 1
    --spec-draft-cpu-range -Crd --cpu-range-draft | 1
    --spec-draft-cpu-strict --cpu-strict-draft | 1
    --spec-draft-prio --prio-draft | 1
    --spec-draft-poll --poll-draft | 1
    --spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft | 1
    --spec-draft-cpu-strict-batch --cpu-strict-batch-draft | 1
    --spec-draft-prio-batch --prio-batch-draft | 1
    --spec-draft-poll-batch --poll-batch-draft | 1
    --spec-draft-override-tensor -otd --override-tensor-draft | 1 | | draft_tensor_overrides overrides | plan
    --spec-draft-cpu-moe -cmoed --cpu-moe-draft | 0 | SPEC_DRAFT_CPU_MOE | draft_tensor_overrides cpu-moe | plan
    --spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft | 1 | SPEC_DRAFT_N_CPU_MOE | draft_tensor_overrides n-cpu-moe | plan
    --spec-draft-n-max | 1 | SPEC_DRAFT_N_MAX | draft_max int | plan
    --spec-draft-n-min | 1 | SPEC_DRAFT_N_MIN
    --spec-draft-n-ubatch | 1 | SPEC_DRAFT_N_UBATCH | draft_ubatch_size int | plan
    --spec-synth-len | 1 | SPEC_SYNTH_LEN
    --spec-synth-rates | 1 | SPEC_SYNTH_RATES
    --spec-draft-p-split --draft-p-split | 1 | SPEC_DRAFT_P_SPLIT
    --spec-draft-p-min --draft-p-min | 1 | SPEC_DRAFT_P_MIN
    --spec-draft-backend-sampling / --no-spec-draft-backend-sampling | 0 | SPEC_DRAFT_BACKEND_SAMPLING
    --spec-draft-sampling | 1 | SPEC_DRAFT_SAMPLING
    --spec-draft-device -devd --device-draft | 1 | | draft_devices names | plan
    --spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft | 1 | N_GPU_LAYERS_DRAFT | draft_gpu_layers layers | plan
    --spec-draft-model -md --model-draft | 1 | SPEC_DRAFT_MODEL | draft_model text | plan
    --spec-type | 1 | SPEC_TYPE | spec_types spec-types | plan
    --spec-ngram-mod-n-min | 1
    --spec-ngram-mod-n-max | 1
    --spec-ngram-mod-n-match | 1
    --spec-ngram-simple-size-n | 1
    --spec-ngram-simple-size-m | 1
    --spec-ngram-simple-min-hits | 1
    --spec-ngram-map-k-size-n | 1
    --spec-ngram-map-k-size-m | 1
    --spec-ngram-map-k-min-hits | 1
    --spec-ngram-map-k4v-size-n | 1
    --spec-ngram-map-k4v-size-m | 1
    --spec-ngram-map-k4v-min-hits | 1
    --draft --draft-n --draft-max | 1 | DRAFT_MAX | draft_max int | removed
    --draft-min --draft-n-min | 1 | DRAFT_MIN | | removed
    --spec-ngram-size-n | 1 | | | removed
    --spec-ngram-size-m | 1 | | | removed
    --spec-ngram-min-hits | 1 | | | removed
    -lcs --lookup-cache-static | 1
    -lcd --lookup-cache-dynamic | 1
    --kv-unified-per-slot | 1 | KV_UNIFIED_PER_SLOT | kv_unified_per_slot int | plan
    -ctxcp --ctx-checkpoints --swa-checkpoints | 1 | CTX_CHECKPOINTS | ctx_checkpoints int | plan
    -cms --checkpoint-min-step | 1 | CHECKPOINT_MIN_SPACING_NT
    -cram --cache-ram | 1 | CACHE_RAM | cache_ram_mib int | plan
    -kvu --kv-unified / -no-kvu --no-kv-unified | 0 | KV_UNIFIED | kv_unified switch | plan
    --cache-idle-slots / --no-cache-idle-slots | 0 | CACHE_IDLE_SLOTS
    --context-shift / --no-context-shift | 0 | CONTEXT_SHIFT | context_shift switch | behaviour
    -r --reverse-prompt | 1
    -sp --special | 0
    --warmup / --no-warmup | 0
    --spm-infill | 0
    --pooling | 1 | POOLING | pooling text | behaviour
    -np --parallel | 1 | N_PARALLEL | parallel slots | plan
    -cb --cont-batching / -nocb --no-cont-batching | 0 | CONT_BATCHING
    -mm --mmproj | 1 | MMPROJ | mmproj text | not counted
    -mmu --mmproj-url | 1 | MMPROJ_URL | mmproj text | not counted
    --mmproj-auto / --no-mmproj --no-mmproj-auto | 0 | MMPROJ_AUTO | mmproj_auto switch | plan
    --mmproj-offload / --no-mmproj-offload | 0 | MMPROJ_OFFLOAD | mmproj_offload switch | plan
    -mmdev --mmproj-device | 1 | $MTMD_BACKEND_DEVICE | mmproj_device text | plan
    --image-min-tokens | 1 | IMAGE_MIN_TOKENS
    --image-max-tokens | 1 | IMAGE_MAX_TOKENS
    --mtmd-batch-max-tokens | 1 | MTMD_BATCH_MAX_TOKENS
    --video-fps | 1 | VIDEO_FPS
    --video-timestamp-interval | 1 | VIDEO_TIMESTAMP_INTERVAL
    --video-ffmpeg-dir | 1 | VIDEO_FFMPEG_DIR
    -a --alias | 1 | ALIAS | alias text | launch
    --tags | 1 | TAGS
    --embd-normalize | 1
    --host | 1 | HOST | host text | launch
    --port | 1 | PORT | port int | launch
    --reuse-port | 0 | REUSE_PORT
    --path | 1 | STATIC_PATH
    --cors-origins | 1 | CORS_ORIGINS
    --cors-methods | 1 | CORS_METHODS
    --cors-headers | 1 | CORS_HEADERS
    --cors-credentials / --no-cors-credentials | 0 | CORS_CREDENTIALS
    --api-prefix | 1 | API_PREFIX | api_prefix text | launch
    --ui-config --webui-config | 1 | UI_CONFIG
    --ui-config-file --webui-config-file | 1 | UI_CONFIG_FILE
    --ui-mcp-proxy --webui-mcp-proxy / --no-ui-mcp-proxy --no-webui-mcp-proxy | 0 | UI_MCP_PROXY
    --tools | 1 | TOOLS
    --tools-runtime | 1 | TOOLS_RUNTIME
    --mcp-servers-config | 1 | MCP_SERVERS_CONFIG
    --mcp-servers-json | 1 | MCP_SERVERS_JSON
    -ag --agent / -no-ag --no-agent | 0 | AGENT
    --ui --webui / --no-ui --no-webui | 0 | UI
    --embedding --embeddings | 0 | EMBEDDINGS | embedding switch | plan
    --rerank --reranking | 0 | RERANKING | reranking switch | plan
    --api-key | 1 | $LLAMA_API_KEY
    --api-key-file | 1 | API_KEY_FILE | api_key_file text | launch
    --ssl-key-file | 1 | SSL_KEY_FILE | ssl_key_file text | launch
    --ssl-cert-file | 1 | SSL_CERT_FILE | ssl_cert_file text | launch
    --chat-template-kwargs | 1 | CHAT_TEMPLATE_KWARGS
    -to --timeout | 1 | TIMEOUT
    --sse-ping-interval | 1 | SSE_PING_INTERVAL
    --threads-http | 1 | THREADS_HTTP
    --cache-prompt / --no-cache-prompt | 0 | CACHE_PROMPT
    --cache-reuse | 1 | CACHE_REUSE
    --metrics | 0 | ENDPOINT_METRICS
    --props | 0 | ENDPOINT_PROPS
    --slots / --no-slots | 0 | ENDPOINT_SLOTS
    --slot-save-path | 1 | SLOT_SAVE_PATH | slot_save_path text | behaviour
    --media-path | 1
    --models-dir | 1 | MODELS_DIR | models_dir text | launch
    --models-preset | 1 | MODELS_PRESET
    --models-max | 1 | MODELS_MAX
    --models-autoload / --no-models-autoload | 0 | MODELS_AUTOLOAD
    --jinja / --no-jinja | 0 | JINJA
    --reasoning-format | 1 | THINK
    -rea --reasoning | 1 | REASONING
    --reasoning-effort | 1 | REASONING_EFFORT
    --reasoning-budget | 1 | THINK_BUDGET
    --reasoning-budget-message | 1 | THINK_BUDGET_MESSAGE
    --reasoning-preserve / --no-reasoning-preserve | 0 | REASONING_PRESERVE
    --chat-template | 1 | CHAT_TEMPLATE
    --chat-template-file | 1 | CHAT_TEMPLATE_FILE
    --skip-chat-parsing / --no-skip-chat-parsing | 0 | SKIP_CHAT_PARSING
    --prefill-assistant / --no-prefill-assistant | 0 | PREFILL_ASSISTANT
    -sps --slot-prompt-similarity | 1
    --lora-init-without-apply | 0
    --sleep-idle-seconds | 1 | | sleep_idle_seconds int | behaviour
    --log-prompts-dir | 1
    --embd-gemma-default | 0 | | | not counted
    --fim-qwen-1.5b-default | 0 | | | not counted
    --fim-qwen-3b-default | 0 | | | not counted
    --fim-qwen-7b-default | 0 | | | not counted
    --fim-qwen-7b-spec | 0 | | | not counted
    --fim-qwen-14b-spec | 0 | | | not counted
    --fim-qwen-30b-default | 0 | | | not counted
    --gpt-oss-20b-default | 0 | | | not counted
    --gpt-oss-120b-default | 0 | | | not counted
    --vision-gemma-4b-default | 0 | | | not counted
    --vision-gemma-12b-default | 0 | | | not counted
    --spec-default | 0 | | spec_types ngram-mod | plan
"""  # noqa: E501

NEWER = frozenset({"--moe-cache-mib", "--spec-draft-n-ubatch", "--spec-draft-sampling", "--slot-save-path"})
"""Flags that the oldest of ``BUILDS`` lacks, or whose variable it does not read."""

_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of llama-server."""

    names: tuple[str, ...]
    negated: tuple[str, ...]
    """Names that switch it off."""
    values: int
    """Words that follow it."""
    variable: str | None
    """The environment variable that llama-server reads before its command line."""
    setting: str | None
    """The field of ``ServerSettings`` that it changes."""
    kind: str | None
    """How its text becomes that field's value."""
    role: Role

    @property
    def long_name(self) -> str:
        """The first long name."""
        return next(name for name in self.names if name.startswith("--"))

    @property
    def off_variable(self) -> str | None:
        """The variable that switches it off with any value (common/arg.cpp, get_value_from_env)."""
        if self.variable is None or not self.negated:
            return None
        return self.variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")


def _flag(row: str) -> Flag:
    cells = [cell.strip() for cell in row.split("|")]
    names, values, variable, setting, role = (*cells, *[""] * (5 - len(cells)))
    on, _, off = names.partition("/")
    field, _, kind = setting.partition(" ")
    if variable and not variable.startswith("$"):
        variable = f"$LLAMA_ARG_{variable}"
    return Flag(
        tuple(on.split()),
        tuple(off.split()),
        int(values),
        variable[1:] or None,
        field or None,
        kind or None,
        _ROLES[role],
    )


FLAGS = tuple(_flag(row) for row in _TABLE.strip().splitlines())
BY_NAME = {name: flag for flag in FLAGS for name in (*flag.names, *flag.negated)}


def flag_of(setting: str) -> Flag:
    """The first flag that changes a field of ``ServerSettings``."""
    return next(flag for flag in FLAGS if flag.setting == setting)


def closest_flag(name: str) -> str | None:
    """The flag that is most similar to a misspelt one."""
    near = difflib.get_close_matches(name, BY_NAME, 1, 0.8)
    return near[0] if near else None
