"""Writes the dashboards as JSON: ``python -m llamatel_dashboards.build`` (``make dashboards``), at development time."""

from __future__ import annotations

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from llamatel_dashboards import fleet_board as fleet
from llamatel_dashboards import gpu_board as gpu
from llamatel_dashboards import kv_cache_board as kv_cache
from llamatel_dashboards import model_server_board as model_server
from llamatel_dashboards import overview_board as overview
from llamatel_dashboards import requests_board as requests
from llamatel_dashboards.published import FOLDER

DASHBOARDS = (overview, requests, kv_cache, model_server, gpu, fleet)


def build() -> dict[str, str]:
    """Each dashboard's JSON by its file's name."""
    made = {}
    for module in DASHBOARDS:
        text = json.dumps(module.dashboard().build(), cls=JSONEncoder, indent=1, sort_keys=True)
        made[f"{module.__name__.rpartition('.')[2].removesuffix('_board')}.json"] = f"{text}\n"
    return made


def main() -> int:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in build().items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
