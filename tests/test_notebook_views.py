"""``last_trace()`` and ``report()`` under the styles of notebooks, with the names of real models, after ``shutdown()``.

nbconvert is real. JupyterLab, VS Code and Kaggle are simulated: their rules for tables and colours, and what their
sanitizers take away. JupyterLab 4.6 and Notebook 7.6 themselves were looked at in November 2026.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import llamatel
from llamatel.llama import LlamaCppClient, ServerManager
from tests.conftest import _get
from tests.notebooks import cells, nbformat, run_notebook
from tests.parts.environments import application_servers
from tests.servers import without_settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LONG_NAME = "Qwen2.5-Coder-7B-Instruct-Q4_K_M.gguf"
WIDTH = 760
STYLES = {
    "JupyterLab": ".out table { table-layout: fixed; border: none; font-size: 12px; margin: 0 auto 1em } "
    ".out td, .out th { text-align: right; vertical-align: middle; padding: 0.5em; line-height: normal; "
    "white-space: normal; max-width: none; border: none } .out tbody tr:nth-child(odd) { background: #8882 }",
    "VS Code": ".out { font: 13px sans-serif } .out table { border-collapse: collapse; border-spacing: 0; "
    "word-break: normal } .out th, .out td { padding: 4px 6px; border: 1px solid #8884; text-align: right } "
    ".out tr:nth-child(even) { background: #8881 } .out * { box-sizing: border-box }",
    "Kaggle": ".out { font: 14px Inter, sans-serif; line-height: 20px } .out table { width: auto; margin-left: 0; "
    "border: 0; border-collapse: collapse } .out td, .out th { padding: 8px; max-width: 300px; white-space: nowrap; "
    "text-align: right; border-bottom: 1px solid #8884 }",
}


@pytest.fixture(scope="module")
def views(tiny_model: Path) -> dict[str, str]:
    """The HTML of a trace and of a report of a short run, after its end."""
    with pytest.MonkeyPatch.context() as patch:
        without_settings(patch)
        llamatel.init(service_name="notebook", keep_traces=True, metrics_addr="none")
        try:
            with ServerManager(backend="xllamacpp") as server:
                flags = ["-t", "1"]
                server.start_server(tiny_model, ctx_size=1024, n_parallel=2, port=0, alias=LONG_NAME, extra_args=flags)
                server.wait_until_ready(120)
                with LlamaCppClient(server.base_url) as client:
                    for number in range(4):
                        with llamatel.span(f"summarise chapter {number} of a long book"):
                            client.complete("x " * 60 * number, n_predict=20, ignore_eos=True, model=LONG_NAME)
        finally:
            llamatel.shutdown()
    return {"trace": llamatel.last_trace()._repr_html_(), "report": llamatel.report()._repr_html_()}


def untrusted(html: str) -> str:
    """As sanitizers leave it in a notebook that is not trusted: no styles, no scripts, of drawings their text.

    JupyterLab keeps more styles than that.
    """
    html = re.sub(r"<(style|script)\b.*?</\1>", "", html, flags=re.DOTALL)
    html = re.sub(r"</?(svg|title|text|line|rect|path|circle|polyline|polygon)\b[^>]*>", "", html)
    return re.sub(r'\s(style|class|on\w+)="[^"]*"', "", html)


def shown(browser: Browser, html: str, style: str, *, dark: bool) -> Page:
    colours = "background: #111; color: #eee" if dark else "background: #fff; color: #111"
    page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="dark" if dark else "light")
    page.set_content(f'<style>{STYLES[style]} body {{ {colours} }}</style><div class="out">{html}</div>')
    return page


def assert_nothing_overlaps(page: Page) -> None:
    """Neither the cells of a row, nor text and the edge of its cell; and the page is no wider than the notebook."""
    found = page.evaluate(
        """() => [...document.querySelectorAll('tr')].flatMap(row => {
            const cells = [...row.children].map(cell => cell.getBoundingClientRect());
            return cells.slice(1).map((cell, at) => cells[at].right - cell.left);
        })"""
    )
    assert found
    assert max(found) <= 0.5
    cut = page.evaluate(
        """() => [...document.querySelectorAll('td, th')].filter(cell =>
            cell.scrollWidth > cell.clientWidth + 1 && getComputedStyle(cell).overflow == 'visible'
        ).map(cell => cell.textContent)"""
    )
    assert not cut
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("view", ["trace", "report"])
def test_notebook_view_styles(views: dict[str, str], browser: Browser, view: str, style: str, dark: bool) -> None:
    page = shown(browser, views[view], style, dark=dark)
    assert_nothing_overlaps(page)
    text = page.inner_text("body")
    assert "prefill" in text
    assert "decode" in text
    assert LONG_NAME[:12] in text
    colours = page.evaluate(
        """() => [...document.querySelectorAll('td, p, h2, b, svg text')].map(one => {
            const style = getComputedStyle(one);
            return one.tagName == 'text' ? style.fill : style.color;
        })"""
    )
    # The notebook's own colours, or a grey that both have contrast with.
    for colour in set(colours):
        red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
        brightness = (red * 299 + green * 587 + blue * 114) / 1000
        assert abs(brightness - (17 if dark else 255)) > 70, colour
    page.close()


@pytest.mark.parametrize("view", ["trace", "report"])
def test_notebook_view_untrusted(views: dict[str, str], browser: Browser, view: str) -> None:
    page = shown(browser, untrusted(views[view]), "JupyterLab", dark=False)
    text = page.inner_text("body")
    for word in ("prefill", "decode", LONG_NAME[:12], "ms"):
        assert word in text
    assert "{" not in text  # no style sheet that became text
    assert view == "trace" or re.search(r"tokens a second 0 [\d,]+ [\d,]+ \d\d:", text)  # labels of a chart, apart
    page.close()


@pytest.fixture(scope="module")
def nbconvert(request: pytest.FixtureRequest) -> Path:
    return _get(request, application_servers)


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_notebook_view_nbconvert(
    theme: str, nbconvert: Path, browser: Browser, tiny_model: Path, tmp_path: Path
) -> None:
    ran = run_notebook(
        cells(
            "import llamatel\nfrom llamatel.llama import LlamaCppClient, ServerManager\n"
            "llamatel.init(metrics_addr='none')",
            f"server = ServerManager()\nserver.start_server({str(tiny_model)!r}, port=0, ctx_size=1024, "
            f"alias={LONG_NAME!r}, extra_args=['-t', '1'])\nserver.wait_until_ready(60)",
            f"with llamatel.span('summarise'):\n    LlamaCppClient(server.base_url).complete('x', n_predict=9, "
            f"model={LONG_NAME!r})\nserver.stop_server()\nllamatel.shutdown()",
            "llamatel.last_trace()",
            "llamatel.report()",
        ),
        tmp_path,
    )
    nbformat.write(ran.notebook, tmp_path / "run.ipynb")
    command = [str(nbconvert), "-m", "nbconvert", "--to", "html", "--theme", theme, str(tmp_path / "run.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.route(re.compile("^https?:"), lambda route: route.abort())  # nbconvert's page names a CDN
    page.goto((tmp_path / "run.html").as_uri(), wait_until="domcontentloaded")
    rows = page.evaluate(
        """() => [...document.querySelectorAll('tr')].flatMap(row => {
            const cells = [...row.children].map(cell => cell.getBoundingClientRect());
            return cells.slice(1).map((cell, at) => cells[at].right - cell.left);
        })"""
    )
    assert len(rows) > 4
    assert max(rows) <= 0.5
    page.close()
