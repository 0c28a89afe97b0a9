"""A script whose own steps and whose calls of a model are one trace.

    python examples/traced_script.py model.gguf

It starts a llama.cpp server, sends it two questions and prints the trace. With OTEL_EXPORTER_OTLP_ENDPOINT set, the
trace goes to your collector too.
"""

import sys

import llamatel
from llamatel.llama import LlamaCppClient, ServerManager


@llamatel.task
def ask(client: LlamaCppClient, question: str) -> str:
    """One question, one answer."""
    messages = [{"role": "user", "content": question}]
    response = client.chat.completions.create(messages=messages, max_tokens=24, temperature=0.0)
    return response.choices[0].message.content or ""


@llamatel.workflow(name="interview")
def interview(client: LlamaCppClient) -> list[str]:
    """Two questions; the second finds the beginning of its prompt in the KV cache."""
    return [ask(client, question) for question in ("What is a llama?", "What is a llama good for?")]


def main(model: str) -> None:
    """Run it."""
    llamatel.init(service_name="traced-script", keep_traces=True)
    with ServerManager() as server:
        server.start_server(model_path=model, ctx_size=2048, port=0).wait_until_ready(timeout=300)
        client = LlamaCppClient(base_url=server.base_url)
        interview(client)
        print(llamatel.last_trace())
        llamatel.report("report.html")
        client.close()
    llamatel.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
