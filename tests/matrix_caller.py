"""Calls a llama.cpp server through one client library, for ``tests.client_matrix``; runs in the libraries' own Python.

    python -m tests.matrix_caller CLIENT INSTRUMENTATION URL-OR-MODEL CALLS

Eight threads send identical prompts, each to its own slot, which identifies the request's caller later. A model's path
starts a server in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llamatel
from llamatel.llama import LlamaCppClient, ServerManager

THREADS = 8
PROMPT = "Tell me a story"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
TOKENS = 12
FLAGS = ("-c", "8192", "-np", str(THREADS), "-t", "1", "--threads-http", "16", "--jinja")

Call = Callable[[int], Any]


def extra(slot: int) -> dict[str, Any]:
    """Fields beyond OpenAI's: the slot; a cached prompt would make the requests shorter, not different."""
    return {"id_slot": slot, "ignore_eos": True}


def openai_sync(url: str) -> Call:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    return lambda slot: client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=TOKENS, extra_body=extra(slot)
    )


def openai_stream(url: str) -> Call:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    return lambda slot: list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=TOKENS, stream=True, extra_body=extra(slot)
        )
    )


def openai_async(url: str) -> Call:
    import openai

    async def call(slot: int) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=TOKENS, extra_body=extra(slot)
            )

    return lambda slot: asyncio.run(call(slot))


def openai_responses(url: str) -> Call:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    return lambda slot: client.responses.create(
        model="tiny", input=PROMPT, max_output_tokens=TOKENS, extra_body=extra(slot)
    )


def openai_responses_stream(url: str) -> Call:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    return lambda slot: list(
        client.responses.create(
            model="tiny", input=PROMPT, max_output_tokens=TOKENS, stream=True, extra_body=extra(slot)
        )
    )


def openai_completions(url: str) -> Call:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    return lambda slot: client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=TOKENS, extra_body=extra(slot)
    )


def langchain(url: str) -> Call:
    from langchain_openai import ChatOpenAI

    def call(slot: int) -> Any:
        model: Any = ChatOpenAI
        return model(
            model="tiny", base_url=f"{url}/v1", api_key="none", max_tokens=TOKENS, extra_body=extra(slot)
        ).invoke(PROMPT)

    return call


def litellm(url: str) -> Call:
    import litellm as library

    return lambda slot: library.completion(
        model="openai/tiny", api_base=f"{url}/v1", api_key="none", messages=MESSAGES, max_tokens=TOKENS,
        extra_body=extra(slot),
    )  # fmt: skip


def pydantic_ai(url: str) -> Call:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    def call(slot: int) -> Any:
        model = OpenAIChatModel("tiny", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
        return Agent(model).run_sync(PROMPT, model_settings={"max_tokens": TOKENS, "extra_body": extra(slot)})

    return call


def instructor(url: str) -> Call:
    import instructor as library
    import openai
    import pydantic

    class Anything(pydantic.BaseModel):
        a: int

    client = library.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=library.Mode.JSON_SCHEMA)

    def call(slot: int) -> Any:
        # Random weights follow no schema, which is an error of instructor after the call.
        with contextlib.suppress(Exception):
            client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=TOKENS, response_model=Anything, max_retries=0,
                extra_body=extra(slot),
            )  # fmt: skip

    return call


def llm(url: str) -> Call:
    import llm.default_plugins.openai_models as library

    class InSlot(library.Chat):  # type: ignore[misc, unused-ignore]
        slot = 0

        def build_kwargs(self, prompt: Any, stream: bool) -> dict[str, Any]:
            return {**super().build_kwargs(prompt, stream), "extra_body": extra(self.slot)}

    def call(slot: int) -> Any:
        model = InSlot("tiny", key="none", api_base=f"{url}/v1")
        model.slot = slot
        return model.prompt(PROMPT, max_tokens=TOKENS).text()

    return call


def requests(url: str) -> Call:
    import requests as library

    session = llamatel.trace_client(library.Session())
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": TOKENS}
    return lambda slot: session.post(
        f"{url}/v1/chat/completions", json={**body, **extra(slot)}, timeout=60
    ).raise_for_status()


def httpx(url: str) -> Call:
    import httpx2

    client = llamatel.trace_client(httpx2.Client(base_url=url, timeout=60))
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": TOKENS}
    return lambda slot: client.post("/v1/chat/completions", json={**body, **extra(slot)}).raise_for_status()


def llama_cpp_client(url: str) -> Call:
    client = LlamaCppClient(url)
    return lambda slot: client.chat.completions.create(MESSAGES, max_tokens=TOKENS, **extra(slot))


CLIENTS: dict[str, Callable[[str], Call]] = {
    "openai": openai_sync,
    "openai, streaming": openai_stream,
    "openai, async": openai_async,
    "openai, completions": openai_completions,
    "openai, responses": openai_responses,
    "openai, responses, streaming": openai_responses_stream,
    "langchain-openai": langchain,
    "litellm": litellm,
    "pydantic-ai": pydantic_ai,
    "instructor": instructor,
    "llm": llm,
    "requests": requests,
    "httpx": httpx,
    "LlamaCppClient": llama_cpp_client,
}


INSTRUMENTORS = {
    "genai-openai": "opentelemetry.instrumentation.genai.openai:OpenAIInstrumentor",
    "openai-v2": "opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor",
    "openinference-openai": "openinference.instrumentation.openai:OpenAIInstrumentor",
    "openinference-langchain": "openinference.instrumentation.langchain:LangChainInstrumentor",
    "openinference-litellm": "openinference.instrumentation.litellm:LiteLLMInstrumentor",
    "langchain": "opentelemetry.instrumentation.langchain:LangchainInstrumentor",
    "requests": "opentelemetry.instrumentation.requests:RequestsInstrumentor",
    "httpx": "opentelemetry.instrumentation.httpx:HTTPXClientInstrumentor",
    "urllib3": "opentelemetry.instrumentation.urllib3:URLLib3Instrumentor",
}


def instrument(name: str) -> None:
    """Enable another instrumentation; it uses the providers set by ``init()``."""
    if name == "pydantic-ai":
        from pydantic_ai import Agent

        Agent.instrument_all()
    elif name:
        module, _, kind = INSTRUMENTORS[name].partition(":")
        getattr(importlib.import_module(module), kind)().instrument()


@contextlib.contextmanager
def server(url_or_model: str) -> Iterator[str]:
    """The server's address."""
    if url_or_model.startswith("http"):
        yield url_or_model
        return
    with ServerManager() as manager:
        manager.start_server(url_or_model, port=0, alias="tiny", extra_args=FLAGS).wait_until_ready(60)
        yield manager.base_url


def main(client: str, instrumentation: str, url_or_model: str, calls: str) -> None:
    """Run the calls and print the number of failed ones as JSON."""
    llamatel.init(service_name="caller", metrics_addr="none")
    instrument(instrumentation)
    failed: list[str] = []
    with server(url_or_model) as url:
        send = CLIENTS[client](url)

        @llamatel.task(name="call", arguments=True)
        def call(slot: int) -> None:
            try:
                send(slot)
            except Exception as error:
                failed.append(repr(error))
                raise

        def worker(slot: int) -> None:
            for _ in range(int(calls) // THREADS):
                with contextlib.suppress(Exception):
                    call(slot)

        with llamatel.span("first"):  # llamatel learns that calls to this server will be reported
            send(0)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(worker, range(THREADS)))
    json.dump({"failed": failed[:3]}, sys.stdout)
    llamatel.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
