"""Runs llama.cpp in a child process, so that a notebook survives a failed assertion.

The child reads one JSON document (task, path of the result) from standard input, writes progress as lines of JSON to
standard output and llama.cpp's log to standard error. The memory of the model is freed when it exits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamatel.errors import ExploreError, LlamatelError, UsageError
from llamatel.explore.capture import Capture
from llamatel.explore.explore_request import CaptureRequest

Progress = Callable[[str, int, int], None]
_LINES_OF_LOG = 400


def capture(request: CaptureRequest, progress: Progress | None = None) -> Capture:
    """Run the model over the prompt and keep its attention.

    Raises ExploreError if llama.cpp cannot be observed or crashed, UsageError if the request does not fit the model.
    """
    with tempfile.TemporaryDirectory(prefix="llamatel-explore-") as folder:
        out = Path(folder) / "capture.npz"
        _run({"do": "capture", "request": request.as_dict(), "out": str(out)}, progress)
        return Capture.load(out)


def timings(
    model: str, *, longest: int, threads: int | None = None, gpu_layers: int = 0, progress: Progress | None = None
) -> list[dict[str, float]]:
    """The experiment of ``timing.measure`` in a child."""
    document = {"do": "timings", "model": model, "longest": longest, "threads": threads, "gpu_layers": gpu_layers}
    found: list[dict[str, float]] = _run(document, progress)
    return found


def _run(document: dict[str, Any], progress: Progress | None) -> Any:
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "llamatel.explore.explore_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            result = _talk(child, document, progress)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()
        if result is None:
            log.seek(0)
            raise ExploreError(f"llama.cpp exited ({_ending(code)}): {_why(log.readlines())}")
    if "error" in result:
        raise (UsageError if result["usage"] else ExploreError)(result["error"])
    return result["result"]


def _talk(child: subprocess.Popen[str], document: dict[str, Any], progress: Progress | None) -> dict[str, Any] | None:
    """Its last message: a result or an error; None if it exited without one."""
    if child.stdin is None or child.stdout is None:
        raise ExploreError("the child process has no pipes")
    try:
        child.stdin.write(json.dumps(document))
        child.stdin.close()
    except BrokenPipeError:
        return None
    for line in child.stdout:
        if not line.startswith("{"):
            continue  # a library that prints
        message: dict[str, Any] = json.loads(line)
        if "progress" not in message:
            return message
        if progress is not None:
            progress(*message["progress"])
    return None


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


def _why(log: list[str]) -> str:
    """The line of llama.cpp's log with the reason."""
    lines = [line.strip() for line in log[-_LINES_OF_LOG:] if line.strip()]
    telling = [line for line in lines if "GGML_ASSERT" in line or "error" in line.lower() or "abort" in line.lower()]
    return (telling or lines or ["it left no message"])[0][:300]


def main() -> None:
    """Entry point of the child."""
    from llamatel.explore.explore_session import capture_here
    from llamatel.explore.step_timing import measure

    document = json.load(sys.stdin)

    def send(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def progress(what: str, done: int, total: int) -> None:
        send({"progress": [what, done, total]})

    try:
        if document["do"] == "capture":
            capture_here(CaptureRequest.from_dict(document["request"]), progress).save(document["out"])
            send({"result": None})
        else:
            arguments = {name: document[name] for name in ("longest", "threads", "gpu_layers")}
            send({"result": measure(document["model"], progress=progress, **arguments)})
    except LlamatelError as error:
        send({"error": str(error), "usage": isinstance(error, UsageError)})
    except MemoryError:
        send({"error": "there is not enough memory", "usage": False})


if __name__ == "__main__":
    main()
