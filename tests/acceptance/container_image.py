"""The container image: deploy/Dockerfile is built and run by a real Docker engine; llamatel in it serves and measures.

No registry is reached: ``python:3.12-slim`` is made here of Debian's Python, and its ``apt-get`` is a stand-in that
installs the package it was made with. pip downloads from the package index.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import urllib.request
from functools import partial
from pathlib import Path

from tests.documents import ROOT
from tests.load import Clients, completion
from tests.parts import apt, free_port, wait_until
from tests.parts.docker import Docker
from tests.parts.missing import MissingPart
from tests.serving import metric_sum

BASE = "python:3.12-slim"
_LIMITS = (
    "--read-only",
    "--tmpfs",
    "/tmp",  # noqa: S108 - in the container
    "--cap-drop",
    "ALL",
    "--memory",
    "2g",
)


_APT_GET = """#!/bin/sh
for word in "$@"; do
    if [ -d "/opt/packages/$word" ]; then cp -a "/opt/packages/$word/." /; fi
done
"""


def _settings(tree: Path) -> None:
    """Give pip in the image the certificates of pip here, and apt-get the one package that it is to install."""
    package = tree / "opt/packages/libgomp1"
    package.mkdir(parents=True)
    if not apt.unpack("libgomp1", package):
        raise MissingPart("libgomp1", "a Debian machine with apt-get")
    for archive in package.glob("*.deb"):
        archive.unlink()
    (tree / "usr/bin/apt-get").write_text(_APT_GET)
    (tree / "usr/bin/apt-get").chmod(0o755)
    certificates = os.environ.get("PIP_CERT") or "/etc/ssl/certs/ca-certificates.crt"
    (tree / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
    shutil.copy(certificates, tree / "etc/ssl/certs/ca-certificates.crt")
    (tree / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")


def _context(folder: Path) -> Path:
    """The files under version control, as in a checkout."""
    context = folder / "context"
    context.mkdir()
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True).stdout
    archive = subprocess.run(
        ["tar", "-C", ROOT, "--null", "-T", "-", "-c"], input=names, check=True, capture_output=True
    )
    subprocess.run(["tar", "-C", context, "-x"], input=archive.stdout, check=True)
    return context


def _stop(docker: Docker, container: str) -> int:
    docker.run("stop", "--time", "20", container)
    return int(docker.run("inspect", "--format", "{{.State.ExitCode}}", container))


def run(folder: Path) -> dict[str, object]:
    """Build the image, run `serve` in it, then `attach`, and stop both."""
    with Docker(folder) as docker, contextlib.ExitStack() as stack:
        docker.import_python(BASE, _settings)
        context = _context(folder)
        built = docker.run(
            "build", "--network=host", "--file", context / "deploy/Dockerfile", "--tag", "llamatel", context
        )
        image = json.loads(docker.run("inspect", "llamatel"))[0]
        server, metrics, observer = free_port(), free_port(), free_port()
        words = ["serve", "tiny", "--port", str(server), "--metrics-addr", f"127.0.0.1:{metrics}"]
        run_words = ["run", "--detach", "--network=host", *_LIMITS]
        serve = docker.run(*run_words, "llamatel", *words)
        stack.callback(docker.try_run, "rm", "--force", serve)
        url, scrape = f"http://127.0.0.1:{server}", f"http://127.0.0.1:{metrics}/metrics"

        def ready() -> bool:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(scrape.replace("metrics", "readyz"), timeout=5) as answer,
            ):
                return bool(answer.status == 200)
            state = docker.run("inspect", "--format", "{{.State.Running}}", serve)
            assert state == "true", docker.try_run("logs", serve)
            return False

        wait_until(ready, 120, "llamatel in the container is ready", every=0.5)
        wait_until(lambda: metric_sum(scrape, "llamacpp_server_up") == 1, 120, "llama.cpp is up", every=0.5)
        attach = docker.run(*run_words, "llamatel", "attach", url, "--metrics-addr", f"127.0.0.1:{observer}")
        stack.callback(docker.try_run, "rm", "--force", attach)
        with Clients(url) as clients:
            answers = [clients.send(completion("Hello", 8)) for _ in range(3)]
        tokens = partial(metric_sum, scrape, "llamacpp_tokens_total", type="output")
        wait_until(lambda: tokens() == 24, 120, "24 tokens", 0.5)
        counted = partial(metric_sum, scrape, "llamacpp_requests_total", outcome="ok")
        wait_until(lambda: counted() == len(answers), 120, "three requests", 0.5)
        other = f"http://127.0.0.1:{observer}/metrics"
        wait_until(
            lambda: metric_sum(other, "llamacpp_tokens_total", type="output") == 24, 60, "as attach sees it", 0.5
        )
        user = docker.run("exec", serve, "python", "-c", "import os; print(os.getuid(), os.access('/etc', os.W_OK))")
        health = image["Config"]["Healthcheck"]["Test"]
        healthy = docker.try_run("exec", serve, *[word.replace("9464", str(metrics)) for word in health[1:]]).returncode
        totals = {"requests": counted(), "output_tokens": tokens()}
        codes = {"attach": _stop(docker, attach), "serve": _stop(docker, serve)}
        log = docker.try_run("logs", serve)
        figures: dict[str, object] = {
            "image_mb": round(image["Size"] / 1e6),
            "steps": len(re.findall(r"^Step \d+", built, re.MULTILINE)),
            "user": user,
            "healthcheck_exit_code": healthy,
            "answers": sum(answer.status == 200 for answer in answers),
            "counted": totals,
            "exit_codes_after_sigterm": codes,
        }
        assert image["Config"]["User"] == "10001", figures
        assert user == "10001 False", figures
        assert (healthy, codes["serve"], codes["attach"]) == (0, 0, 0), (figures, log.stdout, log.stderr)
        return figures
