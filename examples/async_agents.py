"""Several agents at work at the same time; each one's calls stay below its own span.

python examples/async_agents.py model.gguf
"""

import asyncio
import sys

import llamatel
from llamatel.llama import AsyncLlamaCppClient, ServerManager


@llamatel.task
async def draft(client: AsyncLlamaCppClient, topic: str) -> str:
    """A first version."""
    messages = [{"role": "user", "content": f"One sentence on {topic}."}]
    response = await client.chat.completions.create(messages=messages, max_tokens=16)
    return response.choices[0].message.content or ""


@llamatel.task
async def review(client: AsyncLlamaCppClient, text: str) -> str:
    """A better one."""
    messages = [{"role": "user", "content": f"Shorten: {text}"}]
    response = await client.chat.completions.create(messages=messages, max_tokens=8)
    return response.choices[0].message.content or ""


@llamatel.task
async def agent(client: AsyncLlamaCppClient, topic: str) -> str:
    """Draft, then review."""
    return await review(client, await draft(client, topic))


@llamatel.workflow(name="newsroom")
async def newsroom(client: AsyncLlamaCppClient, topics: list[str]) -> list[str]:
    """All agents at once."""
    return await asyncio.gather(*(agent(client, topic) for topic in topics))


async def work(url: str) -> None:
    """Ask on one connection pool."""
    async with AsyncLlamaCppClient(base_url=url) as client:
        await newsroom(client, ["llamas", "caches", "traces"])


def main(model: str) -> None:
    """Run it."""
    llamatel.init(service_name="async-agents", keep_traces=True)
    with ServerManager() as server:
        server.start_server(model_path=model, ctx_size=4096, n_parallel=3, port=0).wait_until_ready(timeout=300)
        asyncio.run(work(server.base_url))
        print(llamatel.last_trace())
    llamatel.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
