"""``last_trace()`` and ``report()`` in a real JupyterLab, light and dark, trusted and not."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.notebooks import cells, nbformat, run_notebook
from tests.parts import Child, chromium_program, free_port, wait_until
from tests.parts.environments import application_servers
from tests.test_notebook_views import LONG_NAME
from tests.tiny_gguf import write_tiny_model

WORDS = ("summarise", "prefill", "decode", LONG_NAME, "exceeds the available context size", "Decoding speed")
OVERLAPS = """() => [...document.querySelectorAll('.jp-OutputArea-output tr')].flatMap(row => {
    const cells = [...row.children].map(cell => cell.getBoundingClientRect());
    return cells.slice(1).map((cell, at) => cells[at].right - cell.left);
})"""


def run(folder: Path) -> dict[str, Any]:
    """No cell of a table overlaps another, and all words are there; ``SCREENSHOTS`` names a folder for screenshots."""
    model = write_tiny_model(folder / "tiny.gguf")
    work = folder / "notebooks"
    work.mkdir()
    nbformat.write(run_notebook(_notebook(model), work).notebook, work / "trusted.ipynb")
    received = json.loads((work / "trusted.ipynb").read_text())
    received["cells"][0]["source"] = "import llamatel  # from elsewhere: another signature"
    (work / "untrusted.ipynb").write_text(json.dumps(received))
    config = folder / "config" / "lab" / "user-settings" / "@jupyterlab"
    for name in ("apputils-extension", "notebook-extension"):
        (config / name).mkdir(parents=True)
    (config / "notebook-extension" / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    env = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    python, port = application_servers(), free_port()
    trust = Child([python, "-m", "jupyter", "trust", work / "trusted.ipynb"], folder / "trust.log", env)
    assert trust.process.wait(120) == 0, trust.output()
    flags = ("--allow-root", "--no-browser", f"--port={port}", "--IdentityProvider.token=", f"--notebook-dir={work}")
    lab = Child([python, "-m", "jupyterlab", *flags], folder / "lab.log", env)
    found: dict[str, Any] = {}
    try:
        wait_until(lambda: _responds(f"http://127.0.0.1:{port}/api"), 120, "JupyterLab")
        with sync_playwright() as driver:
            arguments = ["--no-sandbox", "--disable-gpu"]
            chromium = driver.chromium.launch(executable_path=chromium_program(), args=arguments)
            for theme in ("Light", "Dark"):
                chosen = config / "apputils-extension" / "themes.jupyterlab-settings"
                chosen.write_text(json.dumps({"theme": f"JupyterLab {theme}"}))
                for notebook in ("trusted", "untrusted"):
                    page = chromium.new_page(viewport={"width": 1280, "height": 3200})
                    page.goto(f"http://127.0.0.1:{port}/lab/workspaces/{theme}-{notebook}/tree/{notebook}.ipynb")
                    found[f"{notebook}, {theme.lower()}"] = _looked_at(page, notebook == "trusted")
                    if "SCREENSHOTS" in os.environ:
                        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{notebook}-{theme}.png")
                    page.close()
            chromium.close()
    finally:
        lab.stop()
        shutil.rmtree(work)
    return found


def _notebook(model: Path) -> Any:
    call = f"client.complete('word ' * 60, n_predict=20, ignore_eos=True, model={LONG_NAME!r})"
    return cells(
        "import llamatel\nfrom llamatel.llama import LlamaCppClient, ServerManager\nllamatel.init(metrics_addr='none')",
        f"server = ServerManager()\nserver.start_server({str(model)!r}, port=0, ctx_size=1024, alias={LONG_NAME!r}, "
        "extra_args=['-t', '1'])\nserver.wait_until_ready(60)\nclient = LlamaCppClient(server.base_url)",
        f"with llamatel.span('summarise'):\n    {call}\n    {call}\n    try:\n        client.complete('word ' * 3000)\n"
        "    except Exception as error:\n        print(type(error))",
        "server.stop_server()\nllamatel.shutdown()",
        "llamatel.last_trace()",
        "llamatel.report()",
    )


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _looked_at(page: Page, trusted: bool) -> dict[str, Any]:
    page.wait_for_selector(".jp-OutputArea-output table", timeout=180_000)
    page.wait_for_timeout(3000)
    overlaps = page.evaluate(OVERLAPS)
    text = " ".join(page.locator(".jp-Notebook").inner_text().split())
    charts = page.locator(".jp-OutputArea-output svg[role=img]").count()
    assert max(overlaps) <= 0.5, overlaps
    assert not [word for word in WORDS if word not in text], text
    assert (charts > 0) is trusted, charts
    return {"table rows": len(overlaps), "charts": charts}
