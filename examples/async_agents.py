"""Several agents at work at the same time, with the openai package; each one's calls stay below its own span.

python examples/async_agents.py model.gguf
"""

import asyncio
import sys

import openai

import llamatel
from llamatel.llama import ServerManager


async def ask(client: openai.AsyncOpenAI, prompt: str, tokens: int) -> str:
    """One call."""
    response = await client.chat.completions.create(
        model="local", messages=[{"role": "user", "content": prompt}], max_tokens=tokens
    )
    return response.choices[0].message.content or ""


@llamatel.task
async def draft(client: openai.AsyncOpenAI, topic: str) -> str:
    """A first version."""
    return await ask(client, f"One sentence on {topic}.", 16)


@llamatel.task
async def review(client: openai.AsyncOpenAI, text: str) -> str:
    """A better one."""
    return await ask(client, f"Shorten: {text}", 8)


@llamatel.task
async def agent(client: openai.AsyncOpenAI, topic: str) -> str:
    """Draft, then review."""
    return await review(client, await draft(client, topic))


@llamatel.workflow(name="newsroom")
async def newsroom(client: openai.AsyncOpenAI, topics: list[str]) -> list[str]:
    """All agents at once."""
    return await asyncio.gather(*(agent(client, topic) for topic in topics))


async def work(url: str) -> None:
    """Run the agents on one client."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        await newsroom(client, ["llamas", "caches", "traces"])


def main(model: str) -> None:
    """Start a server, run the agents, show the trace."""
    llamatel.init(service_name="async-agents", keep_traces=True)
    with ServerManager() as server:
        server.start_server(model_path=model, ctx_size=4096, n_parallel=3, port=0).wait_until_ready(timeout=300)
        asyncio.run(work(server.base_url))
        print(llamatel.last_trace())
    llamatel.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
