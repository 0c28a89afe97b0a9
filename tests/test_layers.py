"""The import order of the packages and what each may use, read from the code's imports (inside functions, too)."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("llamatel", "collectors/llamatel_collectors", "dashboards/llamatel_dashboards")

ORDER = (
    "llamatel.cli",
    "llamatel.runtime",
    "llamatel_dashboards",
    "llamatel.explore",
    "llamatel.ui",
    "llamatel_collectors",
    "llamatel.telemetry",
    "llamatel.tracing",
    "llamatel.llama",
    "llamatel.gpu",
    "llamatel.collectors",
    "llamatel.snapshots",
    "llamatel.plan",
    "llamatel.flags",
    "llamatel.gguf",
    "llamatel.inputs",
    "llamatel.models",
    "llamatel.metrics",
    "llamatel.records",
    "llamatel.errors",
    "llamatel.providers",
    "llamatel.outputs",
    "llamatel",
)
"""A package imports those after it, never those before it."""


@cache
def modules() -> dict[str, Path]:
    """Our modules by name."""
    found = {}
    for name in FOLDERS:
        folder = ROOT / name
        for path in folder.rglob("*.py"):
            module = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            found[module.removesuffix(".__init__")] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, under TYPE_CHECKING and in functions as well."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules() else node.module for name in names}
    return frozenset(found)


def is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def package_of(module: str) -> str:
    """Its entry in ORDER."""
    return next(part for part in ORDER if is_in(module, part))


def test_imports_follow_the_order() -> None:
    # llamatel/__init__.py names the public functions, and imports their modules when they are used.
    upwards = [
        (module, used)
        for module in modules()
        for used in imports(module) & modules().keys()
        if module != "llamatel" and ORDER.index(package_of(used)) < ORDER.index(package_of(module))
    ]
    assert upwards == []


def test_imports_have_no_cycle() -> None:
    graph = {module: imports(module) & modules().keys() for module in modules()}
    del graph["llamatel"]
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


def test_module_names_are_unique() -> None:
    names = Counter(path.stem for path in modules().values() if path.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("package", "users"),
    [
        ("opentelemetry.sdk", {"llamatel.telemetry"}),
        ("opentelemetry.exporter", {"llamatel.telemetry"}),
        ("pynvml", set()),  # imported by name: see llamatel.gpu
        ("llamatel.explore", {"llamatel.cli.explore", "llamatel.explore"}),
        ("llamatel_collectors", set()),  # found through their entry points
    ],
)
def test_package_is_used_only_by(package: str, users: set[str]) -> None:
    assert all(package_of(user) for user in users)
    found = {module for module in modules() for used in imports(module) if is_in(used, package)}
    assert [module for module in found if not any(is_in(module, user) for user in users)] == []


@pytest.mark.parametrize(
    "package",
    [
        "llamatel.llama.log",
        "llamatel.llama.http",
        "llamatel.llama.watch",
        "llamatel.gpu",
        "llamatel.plan",
        "llamatel.gguf",
        "llamatel.records",
        "llamatel.snapshots",
        "llamatel_collectors",
    ],
)
def test_package_does_not_use_opentelemetry(package: str) -> None:
    found = [module for module in modules() if is_in(module, package)]
    assert found
    assert [module for module in found if any(is_in(used, "opentelemetry") for used in imports(module))] == []
