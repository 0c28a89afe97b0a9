"""A script on one host, llama.cpp and llamatel on another, over TLS with a token: every call is joined.

Stand-ins: the hosts are network namespaces of this machine with a virtual cable between them, each with its own host
name; the laptop's clock is set off by a preloaded library; the reverse proxy that terminates TLS is the test's. Needs
root (``ip netns``).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.client_matrix import count
from tests.parts import OtlpSink
from tests.parts.fake_clock import FakeClock
from tests.serving import Serving
from tests.test_call_reports import Proxy, exporting, of_kind
from tests.test_remote_call_reports import tls
from tests.tiny_gguf import write_tiny_model

GPU_HOST, LAPTOP = "10.231.77.1", "10.231.77.2"
NAMESPACE, CABLE = "llamatel-laptop", ("llamatel-gpu", "llamatel-lap")
TOKEN = "a-token-of-this-proof"  # noqa: S105 - of the test
CALLS = 64
SCRIPT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
import llamatel, openai
llamatel.init(service_name="script", metrics_addr="none")
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")

def ask(number):
    with llamatel.span("call") as span:
        messages = [{"role": "user", "content": "Word " * number}]
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
        span.set_attribute("llamatel.argument.slot", -1)

with ThreadPoolExecutor(8) as threads:
    list(threads.map(ask, range(1, int(sys.argv[2]) + 1)))
assert llamatel.shutdown(20)
print(json.dumps(socket.gethostname()))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A namespace for the laptop; the other end of its cable is here."""
    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1], "netns", NAMESPACE)
        ip("addr", "add", f"{GPU_HOST}/30", "dev", CABLE[0])
        ip("link", "set", CABLE[0], "up")
        ip("-n", NAMESPACE, "addr", "add", f"{LAPTOP}/30", "dev", CABLE[1])
        ip("-n", NAMESPACE, "link", "set", CABLE[1], "up")
        ip("-n", NAMESPACE, "link", "set", "lo", "up")
        yield
    finally:
        ip("netns", "del", NAMESPACE)  # and the cable with it


def run(folder: Path) -> dict[str, Any]:
    """With equal clocks, and with a laptop whose clock is an hour ahead."""
    found: dict[str, Any] = {}
    model, clock = write_tiny_model(folder / "tiny.gguf"), FakeClock(folder)
    context, cert = tls(folder, address=GPU_HOST)
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    flags = ("--host", GPU_HOST, "--page-token-file", str(folder / "token"))
    with network(), OtlpSink() as sink:
        serving = Serving(folder, model, *flags, slots=8, context=512, **exporting(sink))
        page = Proxy(serving.page_url, tls=context, host=GPU_HOST)
        backend = Proxy(sink.endpoint, host=GPU_HOST)
        try:
            for name, seconds in (("equal clocks", 0), ("laptop an hour ahead", 3600)):
                sink.clear()
                clock.step(seconds)
                env = {
                    **os.environ, **exporting(sink), **clock.environment, "OTEL_EXPORTER_OTLP_ENDPOINT": backend.url,
                    "LLAMATEL_URL": page.url, "LLAMATEL_PAGE_TOKEN": TOKEN, "LLAMATEL_CA_FILE": str(cert),
                }  # fmt: skip
                command = [sys.executable, "-c", SCRIPT, serving.url, str(CALLS)]
                laptop = [
                    "ip",
                    "netns",
                    "exec",
                    NAMESPACE,
                    "unshare",
                    "-u",
                    "sh",
                    "-c",
                    'hostname laptop; exec "$@"',
                    "-",
                ]
                done = subprocess.run(
                    [*laptop, *command], env=env, capture_output=True, text=True, timeout=120, check=False
                )
                assert (done.returncode, done.stderr) == (0, ""), done.stderr
                assert json.loads(done.stdout) == "laptop"
                sink.wait_for(lambda arrived: len(of_kind(arrived.spans(), "SERVER")) >= CALLS, what="server spans")
                counted = count(sink.spans())
                offsets: list[float] = [
                    span.attributes.get("llamatel.clock.offset", 0.0) for span in of_kind(sink.spans(), "SERVER")
                ]
                found[name] = {
                    "calls": counted.calls, "joined": counted.joined, "linked": counted.linked, "none": counted.none,
                    "largest_clock_offset_s": round(max(abs(one) for one in offsets), 3),
                }  # fmt: skip
                assert (counted.joined, counted.none) == (CALLS, 0), found
        finally:
            for proxy in (page, backend):
                proxy.close()
            serving.child.stop()
    return found
