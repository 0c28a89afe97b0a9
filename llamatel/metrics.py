"""The table of metrics: names, kinds, units, help, attributes, buckets.

Instruments, the metric reference page and the check of every dashboard query derive from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

DEFAULT_METRICS_ADDR = "127.0.0.1:9464"
"""Where metrics are served by default: OpenTelemetry's default for a Prometheus endpoint."""


class Kind(str, Enum):
    """The kind of a metric."""

    HISTOGRAM = "histogram"  # recorded when requests finish
    COUNTER = "counter"  # added to when requests finish
    TOTAL = "total"  # a counter whose total is read from a Snapshot
    UP_DOWN = "up_down"  # a sum that may fall, read from a Snapshot
    GAUGE = "gauge"  # read from a Snapshot


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    kind: Kind
    unit: str
    """UCUM: ``s``, ``By``, ``1``, ``{token}``."""
    help: str
    attributes: tuple[str, ...] = ()
    """In addition to those of the server (``SERVER_ATTRIBUTES``)."""
    buckets: tuple[float, ...] = ()


SERVER_ATTRIBUTES = ("server.address", "server.port", "gen_ai.request.model")
"""On every metric that is about a server."""
MODEL_ATTRIBUTES = (
    "architecture", "quantization", "attention", "layers", "heads", "kv_heads", "embedding_length", "experts",
    "experts_used", "cache", "gpu_layers",
)  # fmt: skip
"""Attributes of ``llamacpp.model.info``."""
DEVICE_ATTRIBUTES = ("hw.id", "hw.name", "hw.type", "hw.vendor", "hw.driver_version", "hw.parent")
"""On every metric that is about a GPU (semantic conventions, docs/hardware)."""
SETTINGS = (
    "ctx_size", "parallel", "kv_unified", "batch_size", "ubatch_size", "cache_type_k", "cache_type_v", "flash_attn",
    "gpu_layers", "tensor_split", "split_mode", "swa_full", "kv_offload", "fit", "context_shift", "cache_ram",
    "spec_type", "sleep_idle_seconds",
)  # fmt: skip
"""The settings that ``llamacpp.server.info`` shows: llama-server's flags with underscores."""

# Bucket sets. The gen_ai ones are the conventions' own (semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md),
# extended at both ends: a small model on a GPU answers below their first bound, a long prefill on a CPU above their
# last.
_DURATION = (
    0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64,
    1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
)  # fmt: skip
_FIRST_TOKEN = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
_PER_TOKEN = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
_PHASE = (0.0005, 0.001, 0.0025, *_FIRST_TOKEN[2:], 320.0)
_ENERGY = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
_TOKEN_ENERGY = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_SHARE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_TOKENS = (
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0,
    4194304.0, 16777216.0, 67108864.0,
)  # fmt: skip

_CALLED = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.response.model")
_COUNTED = (*_CALLED, "gen_ai.token.modality")
_OPTED = " With OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental."
_CLIENT = (
    Metric(
        "gen_ai.client.operation.duration", Kind.HISTOGRAM, "s",
        "Duration of a traced client call, retries included.", (*_CALLED, "error.type"), _DURATION,
    ),
    Metric(
        "gen_ai.client.operation.time_to_first_chunk", Kind.HISTOGRAM, "s",
        "Time from a traced client call to the first chunk of its stream with generated content.",
        _CALLED, _DURATION,
    ),
    Metric(
        "gen_ai.client.operation.time_per_output_chunk", Kind.HISTOGRAM, "s",
        "Time from one chunk of a stream to the next, as the client received them.", _CALLED, _DURATION,
    ),
    Metric(
        "gen_ai.client.token.usage", Kind.HISTOGRAM, "{token}",
        "Tokens of a traced client call; input includes cached ones.", (*_CALLED, "gen_ai.token.type"), _TOKENS,
    ),
    Metric(
        "gen_ai.client.inference.duration", Kind.HISTOGRAM, "s",
        "As gen_ai.client.operation.duration, for calls that generate." + _OPTED, (*_CALLED, "error.type"), _DURATION,
    ),
    Metric(
        "gen_ai.client.inference.time_to_first_chunk", Kind.HISTOGRAM, "s",
        "As gen_ai.client.operation.time_to_first_chunk." + _OPTED, _CALLED, _DURATION,
    ),
    Metric(
        "gen_ai.client.inference.time_per_output_chunk", Kind.HISTOGRAM, "s",
        "As gen_ai.client.operation.time_per_output_chunk." + _OPTED, _CALLED, _DURATION,
    ),
    Metric(
        "gen_ai.client.inference.usage.input_tokens", Kind.COUNTER, "{token}",
        "Prompt tokens of traced client calls, including cached ones." + _OPTED, _COUNTED,
    ),
    Metric(
        "gen_ai.client.inference.usage.output_tokens", Kind.COUNTER, "{token}",
        "Tokens generated for traced client calls." + _OPTED, _COUNTED,
    ),
    Metric(
        "gen_ai.client.inference.usage.cache_read.input_tokens", Kind.COUNTER, "{token}",
        "Prompt tokens of traced client calls that came from the KV cache." + _OPTED, _COUNTED,
    ),
    Metric(
        "gen_ai.client.embeddings.duration", Kind.HISTOGRAM, "s",
        "As gen_ai.client.operation.duration, for embeddings calls." + _OPTED, (*_CALLED, "error.type"), _DURATION,
    ),
    Metric(
        "gen_ai.client.embeddings.operation.input_tokens", Kind.HISTOGRAM, "{token}",
        "Input tokens of an embeddings call." + _OPTED, _CALLED, _TOKENS,
    ),
    Metric(
        "gen_ai.client.inference.operation.input_tokens", Kind.HISTOGRAM, "{token}",
        "Prompt tokens of a traced client call." + _OPTED, _CALLED, _TOKENS,
    ),
    Metric(
        "gen_ai.client.inference.operation.output_tokens", Kind.HISTOGRAM, "{token}",
        "Tokens generated by a traced client call." + _OPTED, _CALLED, _TOKENS,
    ),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (
    Metric(
        "gen_ai.server.request.duration", Kind.HISTOGRAM, "s",
        "Time from a request's arrival to its end, including the queue if known.",
        ("gen_ai.operation.name", "gen_ai.provider.name", "error.type"), _DURATION,
    ),
    Metric(
        "gen_ai.server.time_to_first_token", Kind.HISTOGRAM, "s",
        "Queue and prefill of requests that completed. The queue part is estimated from llama.cpp's task numbers.",
        ("gen_ai.operation.name", "gen_ai.provider.name"), _FIRST_TOKEN,
    ),
    Metric(
        "gen_ai.server.time_per_output_token", Kind.HISTOGRAM, "s",
        "Decode time per token after the first, of requests that completed.",
        ("gen_ai.operation.name", "gen_ai.provider.name"), _PER_TOKEN,
    ),
    *_CLIENT,
    Metric(
        "llamacpp.request.queue.duration", Kind.HISTOGRAM, "s",
        "Time between a request's arrival and its slot, estimated from llama.cpp's task numbers.",
        (), _PHASE,
    ),
    Metric(
        "llamacpp.request.outside.duration", Kind.HISTOGRAM, "s",
        "Time from a request's arrival at Ollama until its llama-server had it, including model loading; only for "
        "requests whose access line is known.", (), _PHASE,
    ),
    Metric(
        "llamacpp.request.prefill.duration", Kind.HISTOGRAM, "s",
        "Time to process the prompt, as llama.cpp measured it.", (), _PHASE,
    ),
    Metric(
        "llamacpp.request.decode.duration", Kind.HISTOGRAM, "s",
        "Time from the first to the last generated token, as llama.cpp measured it.", (), _DURATION,
    ),
    Metric(
        "llamacpp.request.input_tokens", Kind.HISTOGRAM, "{token}",
        "Prompt length of completed requests, including cached tokens.", (), _TOKENS,
    ),
    Metric(
        "llamacpp.request.cached_tokens", Kind.HISTOGRAM, "{token}",
        "Prompt tokens of completed requests that were reused from the KV cache.", (), (0.0, *_TOKENS),
    ),
    Metric(
        "llamacpp.request.output_tokens", Kind.HISTOGRAM, "{token}",
        "Tokens generated by completed requests.", (), _TOKENS,
    ),
    Metric(
        "llamacpp.requests", Kind.COUNTER, "{request}",
        "Finished requests that got a slot, by outcome; further choices (n > 1) are not counted. A reranking call, "
        "which is a task for each document, counts as one, by estimate, where the server is known to rerank; so does "
        "a decision call. Each input of an embeddings call counts as one. Requests rejected earlier are in "
        "llamacpp.requests.rejected.",
        ("outcome",),
    ),
    Metric(
        "llamacpp.requests.rejected", Kind.TOTAL, "{request}",
        "Requests rejected before they got a slot, by reason, as far as the server's log shows them: without "
        "unknown paths (404), and without wrong API keys in builds that do not log those.",
        ("reason",),
    ),
    Metric(
        "llamacpp.tokens", Kind.TOTAL, "{token}",
        "Tokens by type, from llama.cpp's own counters: prompt tokens computed and cached, tokens generated.",
        ("type",),
    ),
    Metric(
        "llamacpp.processing_time", Kind.TOTAL, "s",
        "Time of requests in prefill and in decode, summed over slots, from llama.cpp's own counters.", ("phase",),
    ),
    Metric(
        "llamacpp.speculative.tokens", Kind.TOTAL, "{token}",
        "Draft tokens by type, from llama.cpp's own counters.", ("type",),
    ),
    Metric(
        "llamacpp.speculative.accepted", Kind.TOTAL, "{token}",
        "Accepted draft tokens by position in the draft, from llama.cpp's own counters.", ("position",),
    ),
    Metric(
        "llamacpp.slots", Kind.GAUGE, "{slot}",
        "Slots that work on a request (busy) and slots that do not (idle).", ("state",),
    ),
    Metric(
        "llamacpp.slot.context_tokens", Kind.GAUGE, "{token}",
        "Tokens that a slot holds in the KV cache; an idle slot keeps those of its last request.", ("slot",),
    ),
    Metric(
        "llamacpp.slot.context_size", Kind.GAUGE, "{token}",
        "Most tokens that a slot can hold; slots that share a pool can each have up to all of it.", ("slot",),
    ),
    Metric(
        "llamacpp.slot.tokens", Kind.GAUGE, "{token}",
        "Progress of the request in a busy slot: prompt tokens computed and reused from the cache, tokens generated.",
        ("slot", "type"),
    ),
    Metric(
        "llamacpp.requests.deferred", Kind.GAUGE, "{request}", "Requests that wait for a slot, from llama.cpp's gauge."
    ),
    Metric(
        "llamacpp.decode.rate", Kind.GAUGE, "{token}/s",
        "Tokens per second that all slots together generated since the previous collection.",
    ),
    Metric(
        "llamacpp.decode.steps", Kind.TOTAL, "{step}",
        "Decode steps (calls of llama_decode, including prefill), from llama.cpp's own counter.",
    ),
    Metric(
        "llamacpp.decode.busy_slots", Kind.GAUGE, "{slot}",
        "Mean busy slots per decode step since the server's process started, from llama.cpp's own gauge.",
    ),
    Metric(
        "llamacpp.context_shifts", Kind.TOTAL, "{shift}",
        "Times a running request lost part of its context to make room (--context-shift).",
    ),
    Metric(
        "llamacpp.kv_cache.capacity", Kind.GAUGE, "{token}",
        "Most tokens that fit into the KV cache: the pool that all slots share, or the sum of the slots' own parts.",
    ),
    Metric(
        "llamacpp.kv_cache.tokens", Kind.GAUGE, "{token}",
        "Tokens in the KV cache: of running requests (active), or in idle slots and reclaimable (cached).",
        ("state",),
    ),
    Metric(
        "llamacpp.kv_cache.usage", Kind.GAUGE, "1",
        "Share of the KV cache's capacity in use, by active and cached tokens.", ("state",),
    ),
    Metric(
        "llamacpp.kv_cache.headroom", Kind.GAUGE, "{token}",
        "Capacity minus active tokens: free cells, and those of idle slots, which llama.cpp reclaims when it needs "
        "room. At 0 a server with one pool fails every running request.",
    ),
    Metric(
        "llamacpp.kv_cache.size", Kind.GAUGE, "By",
        "Bytes allocated for keys, values and recurrent states: as computed from the GGUF and the flags (planned), and "
        "as llama.cpp reported.",
        ("part", "source"),
    ),
    Metric(
        "llamacpp.kv_cache.plan_error", Kind.GAUGE, "By",
        "Bytes that llama.cpp reported for the KV cache minus the planned bytes; 0 if they agree within the "
        "rounding of its log. Otherwise the planned bytes are no longer exported.",
    ),
    Metric(
        "llamacpp.kv_cache.used", Kind.GAUGE, "By",
        "Bytes of the KV cache in use, by active and cached tokens; layers with a window count at most the window.",
        ("part",),
    ),
    Metric(
        "llamacpp.prompt_cache.lookups", Kind.TOTAL, "{token}",
        "Prompt tokens looked up in the KV cache, from llama.cpp's own counters.",
    ),
    Metric(
        "llamacpp.prompt_cache.hits", Kind.TOTAL, "{token}",
        "Prompt tokens reused from the KV cache, from llama.cpp's own counter.",
    ),
    Metric(
        "llamacpp.prompt_cache.reusable", Kind.COUNTER, "{token}",
        "Prompt tokens that were reused, or had been in the KV cache, of requests whose log lines show it; accurate to "
        "0.05 % of the prompt.",
    ),
    Metric(
        "llamacpp.prompt_cache.reused", Kind.COUNTER, "{token}",
        "Prompt tokens of the same requests that were reused from the KV cache.",
    ),
    Metric(
        "llamacpp.prompt_cache.recomputed", Kind.COUNTER, "{token}",
        "Reusable prompt tokens that were computed again, by cause; 'unknown' if the log does not prove one. "
        "An upper bound for slot_taken, prefix_changed, context_shift, cache_cleared and prompt_cache_miss.",
        ("cause",),
    ),
    Metric(
        "llamacpp.prompt_cache.recompute.duration", Kind.COUNTER, "s",
        "Prefill time of the recomputed tokens, at each request's own rate.", ("cause",),
    ),
    Metric(
        "llamacpp.prompt_cache.entries", Kind.GAUGE, "{prompt}",
        "Prompts kept in host memory (--cache-ram); llama.cpp logs it only at -lv 4, which is slow.",
    ),
    Metric(
        "llamacpp.prompt_cache.size", Kind.GAUGE, "By",
        "Host memory of the prompts kept there; llama.cpp logs it only at -lv 4, which is slow.",
    ),
    Metric(
        "llamacpp.model.info", Kind.GAUGE, "1",
        "Always 1; the labels are the model's properties from its GGUF.", MODEL_ATTRIBUTES,
    ),
    Metric(
        "llamacpp.lora.adapter", Kind.GAUGE, "1",
        "1 for each LoRA adapter that the server was started with, by file name.", ("adapter",),
    ),
    Metric("llamacpp.model.parameters", Kind.GAUGE, "{parameter}", "Weights of the model."),
    Metric(
        "llamacpp.model.active_parameters", Kind.GAUGE, "{parameter}",
        "Weights that one token uses: of the experts only the selected ones.",
    ),
    Metric("llamacpp.model.size", Kind.GAUGE, "By", "Bytes of the model's tensors in its file."),
    Metric("llamacpp.model.context_length", Kind.GAUGE, "{token}", "Context length that the model was trained for."),
    Metric(
        "llamacpp.model.state", Kind.GAUGE, "1",
        "1 for the state that a router's model is in (unloaded, loading, loaded, stalled, sleeping, failed, "
        "downloading).",
        ("state",),
    ),
    Metric(
        "llamacpp.model.loads", Kind.TOTAL, "{load}",
        "Times a router loaded a model while it was watched; without its log, loads between two polls are missed.",
    ),
    Metric(
        "llamacpp.model.evictions", Kind.TOTAL, "{eviction}",
        "Times a router unloaded a model to make room for another; known only from its log.",
    ),
    Metric(
        "llamacpp.model.failures", Kind.TOTAL, "{failure}",
        "Times the process of a router's model failed to load it, or crashed.",
    ),
    Metric(
        "llamacpp.server.state", Kind.GAUGE, "1", "1 for the server's current state; other states are absent.",
        ("state",),
    ),
    Metric(
        "llamacpp.server.info", Kind.GAUGE, "1",
        "Always 1; the labels are llama.cpp's build, its backend, and the given settings.",
        ("build", "backend", *SETTINGS),
    ),
    Metric(
        "process.cpu.time", Kind.TOTAL, "s",
        "CPU time of the server's process, including earlier processes before restarts.", ("cpu.mode",),
    ),
    Metric("process.memory.usage", Kind.UP_DOWN, "By", "Resident memory of the server's process."),
    Metric(
        "hw.gpu.utilization", Kind.GAUGE, "1", "Share of the time in which a kernel ran on the GPU.", DEVICE_ATTRIBUTES
    ),
    Metric(
        "hw.gpu.memory.usage", Kind.UP_DOWN, "By", "GPU memory that all processes together use.",
        DEVICE_ATTRIBUTES,
    ),
    Metric(
        "hw.gpu.memory.utilization", Kind.GAUGE, "1", "Share of the GPU's memory that processes use.",
        DEVICE_ATTRIBUTES,
    ),
    Metric("hw.gpu.memory.limit", Kind.UP_DOWN, "By", "Memory of the GPU.", DEVICE_ATTRIBUTES),
    Metric("hw.power", Kind.GAUGE, "W", "Power draw of the GPU's board.", DEVICE_ATTRIBUTES),
    Metric(
        "hw.energy", Kind.TOTAL, "J",
        "Energy that the GPU used, from the driver's counter, which started before llamatel; without a counter, the "
        "integral of its power.",
        DEVICE_ATTRIBUTES,
    ),
    Metric("hw.temperature", Kind.GAUGE, "Cel", "Temperature of the GPU.", DEVICE_ATTRIBUTES),
    Metric("hw.temperature.limit", Kind.GAUGE, "Cel", "Temperature at which the GPU slows down.", DEVICE_ATTRIBUTES),
    Metric("llamatel.gpu.power.limit", Kind.GAUGE, "W", "Power limit of the GPU.", DEVICE_ATTRIBUTES),
    Metric("llamatel.gpu.clock", Kind.GAUGE, "Hz", "Clock of the GPU, by domain.", (*DEVICE_ATTRIBUTES, "domain")),
    Metric(
        "llamatel.gpu.clock.limit", Kind.GAUGE, "Hz", "Highest clock of the GPU, by domain.",
        (*DEVICE_ATTRIBUTES, "domain"),
    ),
    Metric(
        "llamatel.gpu.throttled", Kind.GAUGE, "1", "1 while the GPU's clocks are reduced for this reason, else 0.",
        (*DEVICE_ATTRIBUTES, "reason"),
    ),
    Metric(
        "llamacpp.gpu.memory.used", Kind.GAUGE, "By",
        "GPU memory of the server's process as reported by the driver, including CUDA's own use.", ("hw.id", "hw.name"),
    ),
    Metric(
        "llamacpp.gpu.memory.size", Kind.GAUGE, "By",
        "Memory that the server needs on all GPUs: weights and caches as computed (planned), compute buffers and "
        "CUDA's context as estimated, and what llama.cpp reported at -lv 4.",
        ("part", "source"),
    ),
    Metric(
        "llamacpp.gpu.layers", Kind.GAUGE, "{layer}",
        "Layers on GPUs and all layers, as llama.cpp reports at -lv 4; the output counts as one.", ("type",),
    ),
    Metric(
        "llamacpp.gpu.fallback", Kind.GAUGE, "1",
        "1 if the server has less on GPUs than was requested, else 0.",
    ),
    Metric(
        "llamacpp.energy", Kind.COUNTER, "J",
        "Energy that the server's GPUs used for finished requests, by phase. Requests that ran at the same time get "
        "equal parts; energy used while no request runs is not included.",
        ("phase",),
    ),
    Metric(
        "llamacpp.energy.cost", Kind.COUNTER, "{currency}",
        "Cost of llamacpp.energy at the given price, in the price's currency.",
    ),
    Metric(
        "llamacpp.request.energy", Kind.HISTOGRAM, "J", "Energy of a request, from its slot to its end.", (), _ENERGY
    ),
    Metric(
        "llamacpp.request.output_token.energy", Kind.HISTOGRAM, "J",
        "Energy of decoding one token after the first.", (), _TOKEN_ENERGY,
    ),
    Metric(
        "llamacpp.request.bandwidth_utilization", Kind.HISTOGRAM, "1",
        "Model bandwidth utilisation: bytes that decoding the request had to read, divided by what the GPUs can read "
        "in that time. Requests that run together share the reading of weights; it counts for each of them.",
        (), _SHARE,
    ),
    Metric(
        "llamacpp.request.flops_utilization", Kind.HISTOGRAM, "1",
        "Model FLOPs utilisation: operations of the request's prefill divided by the GPUs' dense FP16 peak.",
        (), _SHARE,
    ),
    Metric(
        "llamacpp.decode.ceiling", Kind.GAUGE, "{token}/s",
        "Highest token rate that the GPUs' memory bandwidth allows one request, with an empty context (start) and a "
        "full context (end).",
        ("context",),
    ),
    Metric("llamacpp.server.up", Kind.GAUGE, "1", "1 while the server responds, 0 while it does not."),
    Metric(
        "llamacpp.server.stale", Kind.GAUGE, "1",
        "1 while a server that is up is too busy to respond, so its other metrics keep their last values; else 0.",
    ),
    Metric(
        "llamacpp.server.stalled", Kind.GAUGE, "1",
        "1 while the server, or a router's model, has work (busy slots, or polls without a response) and made no "
        "progress for a minute (--stalled-after): no counter changed and its process used no CPU; else 0.",
    ),
    Metric(
        "llamacpp.server.restarts", Kind.TOTAL, "{restart}",
        "Times the server was restarted after a failure; for an attached server, times that another process was "
        "found in its place.",
    ),
    Metric("llamacpp.server.start_time", Kind.GAUGE, "s", "Unix time at which the server's process started."),
    Metric("llamacpp.server.loading.duration", Kind.GAUGE, "s", "Time from the process's start until it was ready."),
    Metric(
        "llamatel.log.lines", Kind.TOTAL, "{line}",
        "Lines of the server's log by kind; 'malformed' ones resemble a known line and could not be parsed.", ("kind",),
    ),
    Metric(
        "llamatel.log.understood", Kind.GAUGE, "1",
        "0 once llama.cpp counts tokens of requests that its log did not show: traces and histograms lack them.",
    ),
    Metric(
        "llamatel.log.silent.duration", Kind.GAUGE, "s",
        "Time without a line in the log while llama.cpp counted tokens: the log was rotated, or the program that "
        "forwards it has stopped. 0 while lines arrive.",
    ),
    Metric(
        "llamatel.log.lost", Kind.TOTAL, "By",
        "Bytes of the log known to be lost before they could be read.",
    ),
    Metric(
        "llamatel.log.contradictions", Kind.TOTAL, "{line}",
        "Contradictions between the server's log and llama.cpp's own figures, by kind: a slot that does not exist, a "
        "task launched twice or never assigned, a line from the future, more tokens than were generated. Above 0, "
        "a client may have written into the log (docs/security.md).",
        ("kind",),
    ),
    Metric(
        "llamatel.log.names.limited", Kind.TOTAL, "{line}",
        "Lines of a router's log whose model counts as 'other', because the log contains too many model names.",
    ),
    Metric(
        "llamatel.requests.lost", Kind.TOTAL, "{request}",
        "Requests whose start or end the log did not show, or that were running at the last poll of a router's model.",
    ),
    Metric(
        "llamatel.unloads.unread", Kind.TOTAL, "{unload}",
        "Processes of a router's model that exited before their last counts were read: totals lack what they counted "
        "after the last poll. Always 0 with the router's log from its start.",
    ),
    Metric(
        "llamatel.records.dropped", Kind.TOTAL, "{record}",
        "Records that llamatel lost, by reason: spans (shed, queue_full, export_failed, rejected, shutdown, "
        "spool_full), data points that the OTLP endpoint rejected (points_rejected), lines of --jsonl and --server-log "
        "(jsonl_failed, server_log_failed), requests and calls (the others). Each reason is exported from the start.",
        ("reason",),
    ),
    Metric(
        "llamatel.label_values.limited", Kind.TOTAL, "{sample}",
        "Samples in which an external value (a model name, an error) was replaced by 'other', because the "
        "attribute had too many values.",
        ("attribute",),
    ),
    Metric(
        "llamatel.spans.exported", Kind.TOTAL, "{span}",
        "Spans that the OTLP endpoint accepted; together with those in llamatel.records.dropped, all spans.",
    ),
    Metric("llamatel.spool.size", Kind.GAUGE, "By", "Bytes in the spool (--otlp-spool) that were not delivered yet."),
    Metric("llamatel.spool.spans", Kind.GAUGE, "{span}", "Spans in the spool that were not delivered yet."),
    Metric(
        "llamatel.spans.shed_ratio", Kind.GAUGE, "1",
        "Share of requests without spans because requests finish faster than spans can be written; counters "
        "and histograms stay complete.",
    ),
    Metric(
        "llamatel.build.info", Kind.GAUGE, "1", "Always 1; the labels are the versions of llamatel and Python.",
        ("version", "python_version"),
    ),
    Metric("llamatel.process.cpu.time", Kind.TOTAL, "s", "CPU time of llamatel's own process, user and system."),
    Metric("llamatel.process.memory.usage", Kind.GAUGE, "By", "Resident memory of llamatel's own process."),
    Metric(
        "llamatel.collector.success", Kind.GAUGE, "1", "1 while the collector works, 0 after it failed.", ("collector",)
    ),
    Metric(
        "llamatel.collector.duration", Kind.GAUGE, "s", "Duration of the collector's last snapshot.", ("collector",)
    ),
)  # fmt: skip


DROP_REASONS = (
    "shed", "queue_full", "export_failed", "rejected", "shutdown", "span_failed", "observer_full", "observer_closed",
    "sink_failed", "watcher_failed", "snapshot_failed", "call_elsewhere", "call_not_reported",
    "jsonl_failed", "server_log_failed", "spool_full", "points_rejected",
)  # fmt: skip
"""Values of ``reason`` of ``llamatel.records.dropped``; the first six, and spool_full, count spans."""


def table(metrics: Iterable[Metric] = METRICS) -> dict[str, Metric]:
    """The metrics by name; a duplicate name is a programming error and raises ValueError."""
    rows: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in rows:
            raise ValueError(f"metric {metric.name} is defined twice")
        rows[metric.name] = metric
    return rows
