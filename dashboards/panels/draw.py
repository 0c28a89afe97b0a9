"""Draws the exported dashboards as pictures, with Grafana's own components: development only, not shipped.

    npm install --prefix FOLDER --legacy-peer-deps --ignore-scripts   # package.json of this folder, copied to FOLDER
    python dashboards/panels/draw.py --npm FOLDER --prometheus http://127.0.0.1:9090 --out docs/images

Time series, stat, table and bar gauge panels are drawn; heatmap and state timeline are not among the components on npm.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from llamatel_dashboards.published import dashboards
from tests.parts import chromium_program

HERE = Path(__file__).parent
WIDTH = 1600
PAGE = "<!doctype html><html><body><div id=root></div></body></html>"
ALL = dict.fromkeys(("cluster", "namespace", "job", "instance", "server", "port", "model"), ".*")


def bundle(npm: Path) -> str:
    """The page's script."""
    shutil.copy(HERE / "panels.jsx", npm / "panels.jsx")
    loaders = [f"--loader:.{kind}=dataurl" for kind in ("svg", "png", "ttf", "woff2")]
    aliased = "--alias:react-router-dom-v5-compat=react-router-dom"
    argv = ["npx", "esbuild", "panels.jsx", "--bundle", "--outfile=panels.js", "--minify", aliased, *loaders]
    subprocess.run([*argv, '--define:process.env.NODE_ENV="production"', "--log-level=error"], cwd=npm, check=True)
    return (npm / "panels.js").read_text()


def query(prometheus: str, expr: str, start: float, end: float, *, instant: bool) -> list[dict[str, Any]]:
    """The series that answer a query."""
    step = max(1, round((end - start) / 300))
    parameters = {"query": expr, "time": end} if instant else {"query": expr, "start": start, "end": end, "step": step}
    path = "query" if instant else "query_range"
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - the developer's Prometheus
        return list(json.load(response)["data"]["result"])


def answers(dashboard: dict[str, Any], prometheus: str, start: float, end: float, chosen: dict[str, str]) -> Any:
    """The answers to every query, by panel and query."""
    window = f"{round(end - start)}s"
    values = {**ALL, "__rate_interval": "30s", "__range": window, **chosen}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "custom":
            values.setdefault(variable["name"], variable["current"]["value"])
    found: dict[int, dict[str, Any]] = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expr = re.sub(r"\$(\w+)", lambda name: values[name[1]], target["expr"])
            rows = query(prometheus, expr, start, end, instant=bool(target.get("instant")))
            found.setdefault(panel["id"], {})[target["refId"]] = rows
    return found


def main() -> None:
    """Draw each dashboard into ``OUT/dashboard-NAME.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", type=Path, required=True)
    parser.add_argument("--prometheus", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--end", type=float, default=None, help="Unix time")
    parser.add_argument("--choose", action="append", default=[], metavar="VARIABLE=VALUE")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    end = options.end or time.time()
    start = end - options.minutes * 60
    script = bundle(options.npm)
    chosen = dict(pair.split("=", 1) for pair in options.choose)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium_program()), args=["--no-sandbox"])
        for file, dashboard in dashboards().items():
            name = file.removesuffix(".json")
            if options.names and name not in options.names:
                continue
            data = {
                "dashboard": dashboard,
                "answers": answers(dashboard, options.prometheus, start, end, chosen),
                "from": start,
                "to": end,
                "width": WIDTH,
            }
            page = browser.new_page(viewport={"width": WIDTH + 16, "height": 1000})
            page.on("pageerror", lambda error: print(f"page error: {error}"))
            page.on(
                "console", lambda message: print(f"console: {message.text}"[:500]) if message.type == "error" else None
            )
            # An origin of its own: Grafana's components use localStorage.
            page.route("http://panels.test/", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
            page.goto("http://panels.test/")
            page.add_script_tag(content=f"window.PANELS = {json.dumps(data)}; window.process = {{env: {{}}}};")
            page.add_script_tag(content=script)
            page.add_style_tag(content=(options.npm / "panels.css").read_text())
            page.wait_for_selector("[data-panel], pre", timeout=60_000, state="attached")
            page.wait_for_timeout(1500)
            page.screenshot(path=str(options.out / f"dashboard-{name}.png"), full_page=True)
            page.close()
            print(options.out / f"dashboard-{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
