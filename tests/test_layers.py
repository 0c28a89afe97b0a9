"""Which part of llamatel may import which: what the layout promises, read out of the code's own imports."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("llamatel", "collectors/llamatel_collectors", "dashboards/llamatel_dashboards")


@cache
def modules() -> dict[str, Path]:
    """Our modules by name."""
    found = {}
    for package in PACKAGES:
        folder = ROOT / package
        for path in folder.rglob("*.py"):
            name = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports(module: str) -> dict[str, bool]:
    """What a module imports, and whether it needs that: not for types alone, nor to show itself in a notebook."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    aside = {id(inner) for outer in ast.walk(tree) if is_aside(outer) for inner in ast.walk(outer)}
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else node.module for name in whole]
        else:
            continue
        for name in names:
            found[name] = found.get(name, False) or id(node) not in aside
    return found


def is_aside(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef) and node.name == "_repr_html_"


def of(*parts: str) -> list[str]:
    """The modules of these parts."""
    return [name for name in modules() if is_in(name, parts)]


def is_in(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


FORBIDDEN = [
    (("llamatel.llama.log",), ("llamatel.llama.poll", "llamatel.llama.launch", "llamatel.llama.attach")),
    (("llamatel.llama.poll",), ("llamatel.llama.launch", "llamatel.llama.attach")),
    (("llamatel.llama.launch",), ("llamatel.llama.attach",)),
    (("llamatel.llama.attach",), ("llamatel.llama.launch",)),
    (
        ("llamatel.records", "llamatel.snapshots", "llamatel.metrics", "llamatel.model", "llamatel.plan"),
        ("opentelemetry",),
    ),
    (("llamatel.llama.client", "llamatel.llama.log", "llamatel.llama.poll", "llamatel.view"), ("opentelemetry",)),
    (("llamatel.llama", "llamatel.model", "llamatel.plan"), ("llamatel.cli", "llamatel.page", "llamatel.top")),
    (("llamatel_collectors",), ("opentelemetry", "llamatel.runtime", "llamatel.cli", "llamatel.llama")),
]


@pytest.mark.parametrize(("parts", "others"), FORBIDDEN)
def test_what_stands_below_knows_nothing_of_what_stands_on_it(parts: tuple[str, ...], others: tuple[str, ...]) -> None:
    assert of(*parts)
    assert all(of(other) for other in others if other.startswith("llamatel"))
    assert [(name, used) for name in of(*parts) for used in imports(name) if is_in(used, others)] == []


def test_only_the_export_touches_the_sdk() -> None:
    sdk = ("opentelemetry.sdk", "opentelemetry.exporter")
    users = {name for name in modules() if any(is_in(used, sdk) for used in imports(name))}
    assert users
    assert users <= set(of("llamatel.export"))


def test_collectors_are_found_and_never_imported() -> None:
    users = [name for name in of("llamatel") if any(is_in(used, ("llamatel_collectors",)) for used in imports(name))]
    assert users == []


def test_no_module_needs_itself_over_others_not_even_in_functions() -> None:
    graph = {name: {used for used, needed in imports(name).items() if needed} for name in modules()}
    graph["llamatel.model.shape"].remove("llamatel.model.attention")  # a shape says in words what it is
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules
    assert order.index("llamatel.records") < order.index("llamatel.runtime")
