"""The table of spans and their attributes, the source of ``docs/spans.md``; a test compares it with real spans."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One kind of span."""

    name: str
    kind: str
    help: str


@dataclass(frozen=True, slots=True)
class AttributeRow:
    """One attribute of a span."""

    name: str
    type: str
    """string, int, double, boolean; with its unit."""
    help: str


SPANS = (
    SpanRow(
        "{gen_ai.operation.name} {gen_ai.request.model}",
        "SERVER",
        "One request, from its arrival (or from when it got its slot, if the wait is unknown) until its slot was "
        "released. Status ERROR if it failed; a request that its client cancelled has no error status.",
    ),
    SpanRow(
        "outside llama-server",
        "INTERNAL",
        "For a request that another program forwarded (Ollama): from its arrival there until llama-server had it, if "
        "exactly one access line of that program matches the request.",
    ),
    SpanRow("queue", "INTERNAL", "The wait for a slot, if known and above 0.1 ms. Its length is an estimate."),
    SpanRow(
        "network.request, network.response",
        "INTERNAL",
        "Below a client call that was joined with its request: the time from sending the call to its arrival in the "
        "server, and from the end of the request to that of the call. They include proxies; written above 2 ms.",
    ),
    SpanRow(
        "wait",
        "INTERNAL",
        "Replaces `network.request` and `queue` if they cannot be separated: the server's queue is unknown, or "
        "the call was not joined with a request.",
    ),
    SpanRow("prefill", "INTERNAL", "Processing the part of the prompt that was not cached, up to the first token."),
    SpanRow("decode", "INTERNAL", "From the first generated token to the last."),
    SpanRow(
        "observed {gen_ai.request.model}",
        "INTERNAL",
        "A request of a server that `llamatel attach` polls without its log: from the first poll of its slot that "
        "found it to the last, so shorter than the request. It has no children; requests shorter than the poll "
        "interval are mostly missed.",
    ),
)

ATTRIBUTES = (
    AttributeRow(
        "gen_ai.operation.name",
        "string",
        "generate_content, embeddings, rerank (on a server that is known to rerank; else embeddings) or decision "
        "(`/v1/systemone`); llama.cpp's log does not distinguish chat from plain completion.",
    ),
    AttributeRow("gen_ai.provider.name", "string", "llama.cpp"),
    AttributeRow("gen_ai.request.model", "string", "The model's alias, else the name of its file."),
    AttributeRow("server.address", "string", "Host, IP address or Unix socket of the server."),
    AttributeRow("server.port", "int", "Its port."),
    AttributeRow("gen_ai.usage.input_tokens", "int, tokens", "Prompt tokens, including cached ones."),
    AttributeRow("gen_ai.usage.output_tokens", "int, tokens", "Generated tokens."),
    AttributeRow("gen_ai.usage.cache_read.input_tokens", "int, tokens", "Prompt tokens reused from the KV cache."),
    AttributeRow(
        "error.type",
        "string",
        "context_full, exceed_context_size_error, input_too_large, compute_error, server_exited or _OTHER; absent "
        "without a failure.",
    ),
    AttributeRow("llamacpp.outcome", "string", "ok, cancelled, error, context_full."),
    AttributeRow("llamacpp.slot.id", "int", "The slot that served it."),
    AttributeRow("llamacpp.task.id", "int", "llama.cpp's number of the request."),
    AttributeRow("llamacpp.prompt.computed_tokens", "int, tokens", "Prompt tokens processed in prefill."),
    AttributeRow(
        "llamacpp.prompt.reusable_tokens",
        "int, tokens",
        "Prompt tokens that were reused, or were in the KV cache earlier.",
    ),
    AttributeRow(
        "llamacpp.prompt.recomputed_tokens", "int, tokens", "Reusable tokens that were computed again; absent for 0."
    ),
    AttributeRow(
        "llamacpp.prompt.recompute_time", "double, s", "Time to compute them, at the request's own prefill rate."
    ),
    AttributeRow(
        "llamacpp.prompt.recompute_cause",
        "string",
        "Why they were computed again; unknown if the log does not prove a cause.",
    ),
    AttributeRow("llamacpp.prefill.tokens_per_second", "double, tokens/s", "Computed tokens divided by prefill time."),
    AttributeRow(
        "llamacpp.decode.tokens_per_second", "double, tokens/s", "Tokens after the first divided by decode time."
    ),
    AttributeRow("llamacpp.draft.tokens", "int, tokens", "Drafted tokens, with speculative decoding."),
    AttributeRow("llamacpp.draft.accepted_tokens", "int, tokens", "Drafted tokens that were accepted."),
    AttributeRow("llamacpp.context.tokens", "int, tokens", "Tokens in the slot's context when it was released."),
    AttributeRow("llamacpp.context.shifts", "int", "Times the oldest tokens were dropped to make room; absent for 0."),
    AttributeRow("llamacpp.truncated", "boolean", "Whether llama.cpp cut the prompt or the answer for lack of room."),
    AttributeRow(
        "llamacpp.choice.is_child", "boolean", "True for a further choice (n > 1) of another request, else absent."
    ),
    AttributeRow(
        "llamacpp.request.tasks",
        "int",
        "Of a reranking or decision call: the tasks of llama.cpp that are one call, by estimate: a task for each "
        "document, or for each variant of a question. Absent for other requests.",
    ),
    AttributeRow(
        "llamatel.sampling.ratio",
        "double",
        "Share of requests that get spans while overload sheds the others; absent without overload.",
    ),
    AttributeRow(
        "llamatel.clock.offset",
        "double, s",
        "Of a request that was joined with a call from a machine whose clock differs: the server's clock minus the "
        "client's. The span's times are by the client's clock.",
    ),
    AttributeRow(
        "openinference.span.kind",
        "string",
        "CHAIN if the request was joined with a client call, whose span has the token counts; else absent "
        "(unless `LLAMATEL_OPENINFERENCE=true`).",
    ),
    AttributeRow(
        "llamacpp.queue.estimated", "boolean", "True if the span's start includes an estimated wait, else absent."
    ),
    AttributeRow(
        "http.request.method", "string", "This and the next four: from Ollama's access line, if exactly one matches."
    ),
    AttributeRow("url.path", "string", "Without the query."),
    AttributeRow("http.response.status_code", "int", "Ollama's status."),
    AttributeRow("client.address", "string", "Only with `attach --ollama --client-addresses`."),
    AttributeRow("llamacpp.outside.duration", "double, s", "From its arrival at Ollama until llama-server had it."),
)

LATENCY = (
    AttributeRow("gen_ai.latency.time_in_queue", "double, s", "The wait for a slot; an estimate."),
    AttributeRow("gen_ai.latency.time_to_first_token", "double, s", "Queue and prefill."),
    AttributeRow("gen_ai.latency.e2e", "double, s", "From arrival to the end."),
    AttributeRow("gen_ai.latency.time_in_model_prefill", "double, s", "Prefill."),
    AttributeRow("gen_ai.latency.time_in_model_decode", "double, s", "Decode."),
    AttributeRow("gen_ai.latency.time_in_model_inference", "double, s", "Prefill and decode."),
)
"""With ``LLAMATEL_LATENCY_ATTRIBUTES=true``; the names of vLLM and SGLang."""

IN_PROCESS = (
    AttributeRow("gen_ai.request.max_tokens", "int, tokens", "As requested; absent for no limit."),
    AttributeRow("gen_ai.request.temperature", "double", "As given, or llama-cpp-python's own default."),
    AttributeRow("gen_ai.request.top_p", "double", "As above."),
    AttributeRow("gen_ai.request.top_k", "int", "As above."),
    AttributeRow("gen_ai.request.frequency_penalty", "double", "As above."),
    AttributeRow("gen_ai.request.presence_penalty", "double", "As above."),
    AttributeRow("gen_ai.request.seed", "int", "If given."),
    AttributeRow("gen_ai.request.stream", "boolean", "True for a stream, else absent."),
    AttributeRow("gen_ai.request.stop_sequences", "string[]", "If given."),
    AttributeRow("gen_ai.response.id", "string", "The response's id."),
    AttributeRow("gen_ai.response.finish_reasons", "string[]", "stop, length, tool_calls …"),
    AttributeRow(
        "gen_ai.response.time_to_first_chunk", "double, s", "For a stream: from its first step to the first token."
    ),
    AttributeRow("llamacpp.prefill.compute_time", "double, s", "Measured by llama.cpp's performance counters."),
    AttributeRow(
        "llamacpp.decode.compute_time",
        "double, s",
        "The same. The decode span is longer: it includes sampling and, for a stream, the consumer's time.",
    ),
    AttributeRow("llamacpp.kv_cache.capacity", "int, tokens", "Tokens that fit into the context."),
    AttributeRow("llamacpp.kv_cache.size", "int, bytes", "Size of the KV cache, if known to the byte."),
    AttributeRow(
        "llamacpp.kv_cache.used",
        "int, bytes",
        "Bytes of the KV cache that the context's tokens used at the end of the call.",
    ),
    AttributeRow("llamacpp.model.architecture", "string", "This and the following: from the model's file."),
    AttributeRow("llamacpp.model.attention", "string", "For example: GQA, 4 query heads to a KV head."),
    AttributeRow("llamacpp.model.quantization", "string", "The file type."),
    AttributeRow("llamacpp.model.layers", "int", "Number of layers."),
    AttributeRow("llamacpp.model.heads", "int", "Query heads, if all layers agree."),
    AttributeRow("llamacpp.model.kv_heads", "int", "KV heads, if all layers agree."),
    AttributeRow("llamacpp.model.embedding_length", "int", "Width of the embeddings."),
    AttributeRow("llamacpp.model.context_length", "int, tokens", "Context length that the model was trained for."),
)
"""Additional attributes of a call of llama-cpp-python; it has no address, slot, task and queue."""

CLIENT = (
    AttributeRow("gen_ai.operation.name", "string", "chat, text_completion, embeddings or rerank."),
    AttributeRow("gen_ai.provider.name", "string", "llama.cpp"),
    AttributeRow("gen_ai.request.model", "string", "As requested; absent if not given."),
    AttributeRow("server.address", "string", "As configured in the client."),
    AttributeRow("server.port", "int", "Its port."),
    AttributeRow("gen_ai.request.max_tokens", "int, tokens", "This and the next seven: request parameters, if given."),
    AttributeRow("gen_ai.request.temperature", "double", ""),
    AttributeRow("gen_ai.request.top_p", "double", ""),
    AttributeRow("gen_ai.request.top_k", "int", ""),
    AttributeRow("gen_ai.request.frequency_penalty", "double", ""),
    AttributeRow("gen_ai.request.presence_penalty", "double", ""),
    AttributeRow("gen_ai.request.seed", "int", ""),
    AttributeRow("gen_ai.request.stop_sequences", "string[]", ""),
    AttributeRow("gen_ai.request.choice.count", "int", "If not 1."),
    AttributeRow("gen_ai.request.stream", "boolean", "True for a stream, else absent."),
    AttributeRow("gen_ai.request.encoding_formats", "string[]", "For embeddings."),
    AttributeRow("gen_ai.embeddings.dimension.count", "int", "For embeddings."),
    AttributeRow("gen_ai.output.type", "string", "text or json, if a response format was given."),
    AttributeRow("gen_ai.response.id", "string", "The response's id."),
    AttributeRow("gen_ai.response.model", "string", "The model that generated the response."),
    AttributeRow("gen_ai.response.finish_reasons", "string[]", "As reported by the server: stop, length, tool_calls …"),
    AttributeRow(
        "gen_ai.response.time_to_first_chunk", "double, s", "For a stream: until the first chunk with a token."
    ),
    AttributeRow("gen_ai.usage.input_tokens", "int, tokens", "Prompt tokens, including cached ones."),
    AttributeRow("gen_ai.usage.output_tokens", "int, tokens", "Generated tokens; absent for several choices at once."),
    AttributeRow("gen_ai.usage.cache_read.input_tokens", "int, tokens", "Prompt tokens reused from the KV cache."),
    AttributeRow(
        "error.type",
        "string",
        "The server's own type of error (exceed_context_size_error …), connection_refused, host_not_found, "
        "connection_closed, connection_timeout, broken_stream, timeout, bad_answer, or an exception's name; absent "
        "without a failure.",
    ),
    AttributeRow("http.response.status_code", "int", "For a failed call with a response."),
    AttributeRow("llamacpp.outcome", "string", "ok, cancelled, error."),
    AttributeRow("llamacpp.slot.id", "int", "The slot that served it, if the response has it."),
    AttributeRow(
        "llamacpp.prompt.computed_tokens", "int, tokens", "This and the next four: from the response's timings."
    ),
    AttributeRow("llamacpp.prefill.tokens_per_second", "double, tokens/s", ""),
    AttributeRow("llamacpp.decode.tokens_per_second", "double, tokens/s", ""),
    AttributeRow("llamacpp.draft.tokens", "int, tokens", "With speculative decoding."),
    AttributeRow("llamacpp.draft.accepted_tokens", "int, tokens", "With speculative decoding."),
    AttributeRow("llamacpp.truncated", "boolean", "Whether llama.cpp cut the prompt or the answer."),
    AttributeRow("gen_ai.input.messages", "string, JSON", "This and the next three: only with content capture."),
    AttributeRow("gen_ai.output.messages", "string, JSON", ""),
    AttributeRow("gen_ai.system_instructions", "string, JSON", ""),
    AttributeRow("gen_ai.tool.definitions", "string, JSON", ""),
)
"""Attributes of a client call."""

DECORATED = (
    AttributeRow("code.function.name", "string", "Module and name of the function; absent for `span()`."),
    AttributeRow("gen_ai.operation.name", "string", "invoke_workflow; only for a workflow."),
    AttributeRow("gen_ai.workflow.name", "string", "Only for a workflow."),
    AttributeRow("error.type", "string", "The exception's name; absent without an exception."),
    AttributeRow(
        "llamatel.cancelled", "boolean", "True if the task was cancelled, which is not an error; else absent."
    ),
    AttributeRow("llamatel.argument.NAME", "string or number", "An argument; only if requested."),
    AttributeRow("llamatel.result", "string or number", "The result; only if requested."),
)
"""Attributes that ``task``, ``workflow`` and ``span`` add."""

OBSERVED = (
    AttributeRow("llamacpp.observed", "string", "Always polling: the times of this span are not exact."),
    AttributeRow(
        "llamacpp.observed.longest",
        "double, s",
        "Upper bound of its duration: from the last poll before it was found to the first that no longer found it.",
    ),
    AttributeRow("llamacpp.observed.output_tokens", "int, tokens", "Tokens generated at the last poll."),
)
"""Additional attributes of an observed request; it also has model, server, slot, task and, once it generates, its
input tokens."""
