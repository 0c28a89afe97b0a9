"""Every regular expression of the project needs linear time for any input.

For each one, inputs are derived from its own parse tree: a prefix that reaches a repeat, the repeated part very often,
and a character that makes the match fail. A backtracking expression takes seconds on one of them.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

try:
    from re import _parser as sre_parse  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_parse

import llamatel
import llamatel_collectors
import llamatel_dashboards

LENGTHS = (24, *(1 << power for power in range(7, 15)))
"""In steps: an exponential or a cubic expression would take hours for the longest."""
LIMIT_S = 0.25
"""CPU time; a linear expression takes a few milliseconds for the longest input, a quadratic one seconds."""
METHODS = {"match", "search", "fullmatch", "sub", "subn", "findall", "finditer", "split"}
REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}


class Expression(NamedTuple):
    where: str
    pattern: re.Pattern[str]
    anchored: bool
    """Whether it is only ever matched from the start of the input."""
    repeated: bool = False
    """Whether all its matches are searched for."""


def modules() -> Iterator[Any]:
    for package in (llamatel, llamatel_collectors, llamatel_dashboards):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def patterns_in(value: Any, depth: int = 0) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, bytes):
            value = re.compile(value.pattern.decode("latin-1"), value.flags | re.UNICODE)
        yield value
    elif depth < 3 and isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from patterns_in(each, depth + 1)
    elif depth < 3 and isinstance(value, dict):
        for each in (*value, *value.values()):
            yield from patterns_in(each, depth + 1)


def expression_calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls of functions of ``re`` that take an expression, with the functions' names."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in METHODS | {"compile"}
        ):
            yield node.func.attr, node


def literals_in(tree: ast.AST) -> Iterator[tuple[str, re.Pattern[str]]]:
    """Patterns that are compiled where they are used, and by which function."""
    for method, call in expression_calls(tree):
        if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
            yield method, re.compile(call.args[0].value)


def uses(tree: ast.AST) -> dict[str, set[str]]:
    """The methods that are called on each name."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.setdefault(node.value.id, set()).add(node.attr)
    return found


def expressions() -> list[Expression]:
    found: dict[str, Expression] = {}
    for module in modules():
        source = Path(module.__file__).read_text(encoding="utf-8")
        if "re" not in source:
            continue
        tree = ast.parse(source)
        used = uses(tree)
        for name, value in vars(module).items():
            methods = used.get(name, set()) & METHODS
            anchored = bool(methods) and methods <= {"match", "fullmatch"}
            for pattern in patterns_in(value):
                known = found.get(pattern.pattern)
                repeated = bool(methods & {"sub", "subn", "findall", "finditer", "split"})
                found[pattern.pattern] = Expression(
                    f"{module.__name__}.{name}",
                    pattern,
                    anchored and (known is None or known.anchored),
                    repeated or (known is not None and known.repeated),
                )
        for method, pattern in literals_in(tree):
            anchored = method in {"match", "fullmatch"}
            repeated = method not in {"match", "fullmatch", "search", "compile"}
            found.setdefault(pattern.pattern, Expression(module.__name__, pattern, anchored, repeated))
    return list(found.values())


# -- inputs -----------------------------------------------------------------------------------------------------------


def character_of(items: Any) -> str:
    """A character of a set."""
    negated = bool(items) and str(items[0][0]) == "NEGATE"
    for candidate in "a0 1x_/:-.=|[](){}<>\"'\\\n\u00e9":
        if any(_in_item(candidate, item) for item in items) != negated:
            return candidate
    op, value = items[0]
    return chr(value if str(op) == "LITERAL" else value[0])


def _in_item(character: str, item: Any) -> bool:
    op, value = str(item[0]), item[1]
    if op == "LITERAL":
        return character == chr(value)
    if op == "RANGE":
        return bool(value[0] <= ord(character) <= value[1])
    if op == "CATEGORY":
        categories = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
        name = str(value).removeprefix("CATEGORY_")
        matches = re.match(categories[name.removeprefix("NOT_")], character) is not None
        return bool(matches != name.startswith("NOT_"))
    return False


def character(name: str, value: Any) -> str:
    """What an element matches that is no more than a character; empty for an assertion."""
    if name == "LITERAL":
        return chr(value)
    if name == "NOT_LITERAL":
        return "a" if value != ord("a") else "b"
    if name == "IN":
        return character_of(value)
    return "a" if name == "ANY" else ""


def sample(parsed: Any) -> str:
    """A text that a part of an expression matches, as short as may be."""
    return "".join(text for _, text, _ in walk(parsed, "", pumps=False))


def walk(parsed: Any, before: str, *, pumps: bool) -> Iterator[tuple[str, str, str | None]]:
    """Each element: what leads to it, its shortest text, and what it repeats without a bound."""
    for op, value in parsed:
        name = str(op)
        text, pump = "", None
        if name in REPEATS:
            low, high, body = value
            body_text = sample(body)
            text = body_text * low
            if pumps:
                yield from ((start, "", inner) for start, _, inner in walk(body, before, pumps=True) if inner)
            if int(high) > 32:
                pump = body_text
        elif name == "SUBPATTERN":
            if pumps:
                yield from ((start, "", inner) for start, _, inner in walk(value[-1], before, pumps=True) if inner)
            text = sample(value[-1])
        elif name == "ATOMIC_GROUP":
            text = sample(value)
        elif name == "BRANCH":
            for branch in value[1] if pumps else ():
                yield from ((start, "", inner) for start, _, inner in walk(branch, before, pumps=True) if inner)
            text = sample(value[1][0])
        else:
            text = character(name, value)
        yield before, text, pump
        before += text


def inputs(pattern: re.Pattern[str], length: int) -> Iterator[str]:
    parsed = sre_parse.parse(
        pattern.pattern, pattern.flags & ~re.TEMPLATE if hasattr(re, "TEMPLATE") else pattern.flags
    )
    whole = sample(parsed)
    for start, _, pump in walk(parsed, "", pumps=True):
        if pump:
            for end in ("\0", "\n\0", " \0"):
                yield start + pump * (length // len(pump)) + end
            if start:
                yield start * (length // len(start)) + pump + "\0"
    for piece in {whole, whole[:-1], whole[: len(whole) // 2]}:
        if piece:
            yield piece * (length // len(piece)) + "\0"


def seconds(expression: Expression, text: str) -> float:
    run = expression.pattern.match if expression.anchored else expression.pattern.search
    started = time.thread_time()
    if expression.repeated:
        for _ in expression.pattern.finditer(text):
            pass
    else:
        run(text)
    return time.thread_time() - started


def slowest(expression: Expression) -> tuple[float, str]:
    worst, of = 0.0, ""
    for length in LENGTHS:
        for text in inputs(expression.pattern, length):
            elapsed = seconds(expression, text)
            if elapsed > LIMIT_S:
                elapsed = min(elapsed, seconds(expression, text))
            if elapsed > worst:
                worst, of = elapsed, text
            if worst > LIMIT_S:
                return worst, of
    return worst, of


@pytest.mark.parametrize("expression", [pytest.param(each, id=each.where) for each in expressions()])
def test_expression_is_linear(expression: Expression) -> None:
    elapsed, text = slowest(expression)
    assert elapsed <= LIMIT_S, (
        f"{expression.pattern.pattern!r} takes {elapsed:.1f} s for {text[:60]!r}... ({len(text)})"
    )


def test_expressions_are_found() -> None:
    names = {each.where for each in expressions()}
    assert len(names) > 40
    assert "llamatel.llama.log.logged_server._LISTENING" in names


def test_expressions_made_at_run_time() -> None:
    """Any other expression is a literal, so that the test above has it."""
    found = set()
    for module in modules():
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))):
            for _, call in expression_calls(function):
                if not (isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)):
                    found.add(module.__name__)
    assert found == {
        "llamatel.flags.flag_values",  # -ot of the user; that of a server only if TensorOverride.is_cheap
        "llamatel.flags.tensor_override",
        "llamatel.gguf.hub_choice",  # a tag has words, dots and hyphens
        "llamatel.llama.http.identify",  # names of programs
        "llamatel.llama.log.line_suffix",  # words of a log as literals; searched in 400 characters
        "llamatel_dashboards.queries",
        "llamatel_dashboards.rule_options",  # --job of the user
    }


@pytest.mark.parametrize(
    ("pattern", "anchored"),
    [
        (r"(\S+) +(model|KV) buffer size", False),  # was in llama.log.placement
        (r"(?:[\w ]+: )?std::bad_alloc.*", False),  # was in llama.log.failure_line
        (r"(a+)+$", True),
        (r"\w+\s*\w+\s*=$", True),
        (r"(.*), (.*), (.*) end", True),
    ],
)
def test_backtracking_is_detected(pattern: str, anchored: bool) -> None:
    assert slowest(Expression("", re.compile(pattern), anchored))[0] > LIMIT_S
