"""Spool: a collector is stopped for ten minutes under load; with --otlp-spool every trace arrives.

Environment: ``SPOOL_SECONDS`` (600).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.load import Clients, completion
from tests.parts import OtlpSink, RotelAgent, wait_until
from tests.serving import Serving
from tests.tiny_gguf import write_tiny_model


def run(folder: Path) -> dict[str, object]:
    """Stop the collector, send requests, start it again."""
    seconds = float(os.environ.get("SPOOL_SECONDS", "600"))
    with OtlpSink() as sink:
        rotel = RotelAgent(sink, folder).start()
        serving = Serving(
            folder, write_tiny_model(folder / "tiny.gguf"), "--otlp-endpoint", rotel.http_endpoint,
            "--otlp-protocol", "http/protobuf", "--otlp-spool", str(folder / "spool"), OTEL_BSP_SCHEDULE_DELAY="500",
        )  # fmt: skip
        try:
            rotel.stop()
            requests = [completion(f"Number {number}", 8, stream=bool(number % 2)) for number in range(20)]
            with Clients(serving.url) as clients, clients.keep_sending(requests, at_once=4, pause_s=0.1) as sending:
                time.sleep(seconds)
                most = serving.metric("llamatel_spool_size_bytes")
                answers = sending.end()
            rotel.start()
            wait_until(lambda: serving.metric("llamatel_spool_spans") == 0, 120, "an empty spool", 1.0)
            dropped = serving.metric("llamatel_records_dropped_total")
            counted = serving.metric("llamacpp_requests_total")
            serving.child.process.terminate()
            code = serving.exit_within(30)
            rotel.stop()
            traces = {span.trace_id for span in sink.spans()}
        finally:
            serving.child.stop()
            rotel.stop()
        figures: dict[str, object] = {
            "seconds": seconds,
            "requests": {"clients": len(answers), "counter": counted, "traces": len(traces)},
            "spooled_bytes": most,
            "dropped": dropped,
            "exit_code": code,
        }
        assert len(answers) == counted == len(traces), figures
        assert dropped == 0 == code, figures
        return figures
