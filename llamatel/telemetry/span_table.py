"""The table of spans and their attributes, from which ``docs/spans.md`` is made; a test holds it against real spans."""

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
        "One request, from its arrival (or from when it got its slot, where the wait is not known) until its slot was "
        "released. Status ERROR if it failed; a request that its client cancelled has no error status.",
    ),
    SpanRow(
        "outside llama-server",
        "INTERNAL",
        "Of a request that another program passed on (Ollama): from its arrival there until llama-server had it, where "
        "exactly one access line of that program fits the request.",
    ),
    SpanRow("queue", "INTERNAL", "The wait for a slot, where it is known and above 0.1 ms. Its length is an estimate."),
    SpanRow(
        "network.request, network.response",
        "INTERNAL",
        "Below a client call that was joined with its request: the time from sending the call to its arrival in the "
        "server, and from the end of the request to that of the call. They contain proxies; above 2 ms.",
    ),
    SpanRow(
        "wait",
        "INTERNAL",
        "Instead of `network.request` and `queue` where they cannot be separated: the server's queue is unknown, or "
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
        "generate_content, or embeddings; llama.cpp's log does not distinguish chat from plain completion.",
    ),
    AttributeRow("gen_ai.provider.name", "string", "llama.cpp"),
    AttributeRow("gen_ai.request.model", "string", "The model's alias, else the name of its file."),
    AttributeRow("server.address", "string", "Host, IP address or Unix socket of the server."),
    AttributeRow("server.port", "int", "Its port."),
    AttributeRow("gen_ai.usage.input_tokens", "int, tokens", "Prompt, cached tokens included."),
    AttributeRow("gen_ai.usage.output_tokens", "int, tokens", "Generated."),
    AttributeRow("gen_ai.usage.cache_read.input_tokens", "int, tokens", "Of the prompt, taken from the KV cache."),
    AttributeRow(
        "error.type",
        "string",
        "context_full, exceed_context_size_error, input_too_large, compute_error, server_exited or _OTHER; absent "
        "where nothing failed.",
    ),
    AttributeRow("llamacpp.outcome", "string", "ok, cancelled, error, context_full."),
    AttributeRow("llamacpp.slot.id", "int", "The slot that served it."),
    AttributeRow("llamacpp.task.id", "int", "llama.cpp's number of the request."),
    AttributeRow("llamacpp.prompt.computed_tokens", "int, tokens", "Of the prompt, processed in prefill."),
    AttributeRow("llamacpp.prompt.reusable_tokens", "int, tokens", "Of the prompt, reused or in the KV cache before."),
    AttributeRow("llamacpp.prompt.recomputed_tokens", "int, tokens", "Of those, computed again; absent for 0."),
    AttributeRow(
        "llamacpp.prompt.recompute_time", "double, s", "Time to compute them, at the request's own prefill rate."
    ),
    AttributeRow("llamacpp.prompt.recompute_cause", "string", "Why; unknown where the log does not prove a cause."),
    AttributeRow("llamacpp.prefill.tokens_per_second", "double, tokens/s", "Computed tokens over prefill time."),
    AttributeRow("llamacpp.decode.tokens_per_second", "double, tokens/s", "Tokens after the first over decode time."),
    AttributeRow("llamacpp.draft.tokens", "int, tokens", "Drafted, with speculative decoding."),
    AttributeRow("llamacpp.draft.accepted_tokens", "int, tokens", "Of those, accepted."),
    AttributeRow("llamacpp.context.tokens", "int, tokens", "In the slot's context when it was released."),
    AttributeRow("llamacpp.context.shifts", "int", "Times the oldest tokens were dropped to make room; absent for 0."),
    AttributeRow("llamacpp.truncated", "boolean", "Whether llama.cpp cut the prompt or the answer for lack of room."),
    AttributeRow("llamacpp.choice.is_child", "boolean", "A further choice (n > 1) of another request; else absent."),
    AttributeRow(
        "llamatel.sampling.ratio",
        "double",
        "Share of requests that get spans while overload sheds the others; absent without overload.",
    ),
    AttributeRow(
        "openinference.span.kind",
        "string",
        "CHAIN on a request that was joined with a client call, which has the token counts; else absent "
        "(unless `LLAMATEL_OPENINFERENCE=true`).",
    ),
    AttributeRow("llamacpp.queue.estimated", "boolean", "The span's start contains an estimated wait; else absent."),
    AttributeRow("http.request.method", "string", "From Ollama's access line, as the next four; if exactly one fits."),
    AttributeRow("url.path", "string", "Without the query."),
    AttributeRow("http.response.status_code", "int", "Ollama's."),
    AttributeRow("client.address", "string", "Only with `attach --ollama --client-addresses`."),
    AttributeRow("llamacpp.outside.duration", "double, s", "From its arrival at Ollama until llama-server had it."),
)

LATENCY = (
    AttributeRow("gen_ai.latency.time_in_queue", "double, s", "The wait for a slot; an estimate."),
    AttributeRow("gen_ai.latency.time_to_first_token", "double, s", "Queue and prefill."),
    AttributeRow("gen_ai.latency.e2e", "double, s", "From arrival to end."),
    AttributeRow("gen_ai.latency.time_in_model_prefill", "double, s", ""),
    AttributeRow("gen_ai.latency.time_in_model_decode", "double, s", ""),
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
    AttributeRow("gen_ai.request.seed", "int", "Where one was given."),
    AttributeRow("gen_ai.request.stream", "boolean", "True for a stream, else absent."),
    AttributeRow("gen_ai.request.stop_sequences", "string[]", "Where some were given."),
    AttributeRow("gen_ai.response.id", "string", "The response's own."),
    AttributeRow("gen_ai.response.finish_reasons", "string[]", "stop, length, tool_calls …"),
    AttributeRow(
        "gen_ai.response.time_to_first_chunk", "double, s", "Of a stream: from its first step to the first token."
    ),
    AttributeRow("llamacpp.prefill.compute_time", "double, s", "By llama.cpp's performance counters."),
    AttributeRow(
        "llamacpp.decode.compute_time",
        "double, s",
        "The same. The decode span is longer: it includes sampling and, of a stream, its consumer's time.",
    ),
    AttributeRow("llamacpp.kv_cache.capacity", "int, tokens", "What the context holds."),
    AttributeRow("llamacpp.kv_cache.size", "int, bytes", "The KV cache, where its size is known to the byte."),
    AttributeRow(
        "llamacpp.kv_cache.used", "int, bytes", "Of it, the part that the context's tokens used at the end of the call."
    ),
    AttributeRow("llamacpp.model.architecture", "string", "Of the model's file, as the following."),
    AttributeRow("llamacpp.model.attention", "string", "Such as: GQA, 4 query heads to a KV head."),
    AttributeRow("llamacpp.model.quantization", "string", "The file's type."),
    AttributeRow("llamacpp.model.layers", "int", ""),
    AttributeRow("llamacpp.model.heads", "int", "Where all layers agree."),
    AttributeRow("llamacpp.model.kv_heads", "int", "Where all layers agree."),
    AttributeRow("llamacpp.model.embedding_length", "int", ""),
    AttributeRow("llamacpp.model.context_length", "int, tokens", "What the model was made for."),
)
"""Additional attributes of a call of llama-cpp-python; it has no address, slot, task and queue."""

CLIENT = (
    AttributeRow("gen_ai.operation.name", "string", "chat, text_completion, embeddings or rerank."),
    AttributeRow("gen_ai.provider.name", "string", "llama.cpp"),
    AttributeRow("gen_ai.request.model", "string", "As given; absent where none was."),
    AttributeRow("server.address", "string", "As configured in the client."),
    AttributeRow("server.port", "int", "The same."),
    AttributeRow("gen_ai.request.max_tokens", "int, tokens", "Request parameters are there if they were given."),
    AttributeRow("gen_ai.request.temperature", "double", ""),
    AttributeRow("gen_ai.request.top_p", "double", ""),
    AttributeRow("gen_ai.request.top_k", "int", ""),
    AttributeRow("gen_ai.request.frequency_penalty", "double", ""),
    AttributeRow("gen_ai.request.presence_penalty", "double", ""),
    AttributeRow("gen_ai.request.seed", "int", ""),
    AttributeRow("gen_ai.request.stop_sequences", "string[]", ""),
    AttributeRow("gen_ai.request.choice.count", "int", "Where it is not 1."),
    AttributeRow("gen_ai.request.stream", "boolean", "True for a stream, else absent."),
    AttributeRow("gen_ai.request.encoding_formats", "string[]", "Of embeddings."),
    AttributeRow("gen_ai.embeddings.dimension.count", "int", "Of embeddings."),
    AttributeRow("gen_ai.output.type", "string", "text or json, where a response format was given."),
    AttributeRow("gen_ai.response.id", "string", "The response's own."),
    AttributeRow("gen_ai.response.model", "string", "The model that answered."),
    AttributeRow("gen_ai.response.finish_reasons", "string[]", "In the server's words: stop, length, tool_calls …"),
    AttributeRow(
        "gen_ai.response.time_to_first_chunk", "double, s", "Of a stream: to the first chunk that brings a token."
    ),
    AttributeRow("gen_ai.usage.input_tokens", "int, tokens", "Prompt, cached tokens included."),
    AttributeRow("gen_ai.usage.output_tokens", "int, tokens", "Generated; absent for several choices at once."),
    AttributeRow("gen_ai.usage.cache_read.input_tokens", "int, tokens", "Of the prompt, taken from the KV cache."),
    AttributeRow(
        "error.type",
        "string",
        "The server's own type of error (exceed_context_size_error …), connection_refused, host_not_found, "
        "connection_closed, connection_timeout, broken_stream, timeout, bad_answer, or an exception's name; absent "
        "where nothing failed.",
    ),
    AttributeRow("http.response.status_code", "int", "Of a failed call that the server answered."),
    AttributeRow("llamacpp.outcome", "string", "ok, cancelled, error."),
    AttributeRow("llamacpp.slot.id", "int", "The slot that served it, where the response has it."),
    AttributeRow("llamacpp.prompt.computed_tokens", "int, tokens", "From the response's timings, as the next four."),
    AttributeRow("llamacpp.prefill.tokens_per_second", "double, tokens/s", ""),
    AttributeRow("llamacpp.decode.tokens_per_second", "double, tokens/s", ""),
    AttributeRow("llamacpp.draft.tokens", "int, tokens", "With speculative decoding."),
    AttributeRow("llamacpp.draft.accepted_tokens", "int, tokens", "The same."),
    AttributeRow("llamacpp.truncated", "boolean", "Whether llama.cpp cut the prompt or the answer."),
    AttributeRow("gen_ai.input.messages", "string, JSON", "Only with content capture, as the next three."),
    AttributeRow("gen_ai.output.messages", "string, JSON", ""),
    AttributeRow("gen_ai.system_instructions", "string, JSON", ""),
    AttributeRow("gen_ai.tool.definitions", "string, JSON", ""),
)
"""What a call of our client has."""

DECORATED = (
    AttributeRow("code.function.name", "string", "Module and name of the function; not of `span()`."),
    AttributeRow("gen_ai.operation.name", "string", "invoke_workflow; of a workflow only."),
    AttributeRow("gen_ai.workflow.name", "string", "Of a workflow only."),
    AttributeRow("error.type", "string", "The exception's name; absent where none was raised."),
    AttributeRow("llamatel.cancelled", "boolean", "True where the task was cancelled, which is no error; else absent."),
    AttributeRow("llamatel.argument.NAME", "string, or as it is", "Only if requested; numbers stay numbers."),
    AttributeRow("llamatel.result", "string, or as it is", "The same."),
)
"""Attributes that ``task``, ``workflow`` and ``span`` add."""

OBSERVED = (
    AttributeRow("llamacpp.observed", "string", "polling: the times of this span are not exact."),
    AttributeRow(
        "llamacpp.observed.longest",
        "double, s",
        "Upper bound of its duration: from the poll before the first that found it to the first that did not.",
    ),
    AttributeRow("llamacpp.observed.output_tokens", "int, tokens", "Generated at the last poll."),
)
"""Additional attributes of an observed request; it also has model, server, slot, task and, once it generates, its
input tokens."""
