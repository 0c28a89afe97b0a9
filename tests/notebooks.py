"""Run notebooks in a kernel of this Python and return their outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat as _nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

nbformat: Any = _nbformat  # it has no types


@dataclass(frozen=True, slots=True)
class Ran:
    """An executed notebook."""

    notebook: Any

    @property
    def text(self) -> str:
        """All printed text, including standard error, and the plain text of results."""
        parts = []
        for output in self._outputs():
            parts.append(output.get("text", ""))
            parts.append(output.get("data", {}).get("text/plain", ""))
        return "\n".join(part for part in parts if part)

    def shown(self, kind: str) -> list[str]:
        """Displayed outputs of a type such as ``text/html`` or ``image/png``, in order."""
        return [output["data"][kind] for output in self._outputs() if kind in output.get("data", {})]

    def _outputs(self) -> list[Any]:
        return [output for cell in self.notebook.cells for output in cell.get("outputs", ())]


def cells(*sources: str) -> Any:
    """Return a notebook with these code cells."""
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return made


def run_notebook(
    notebook: str | Path | Any, folder: Path, env: Mapping[str, str] | None = None, *, timeout_s: int = 120
) -> Ran:
    """Execute a notebook (a path, or a result of ``cells``) in ``folder``, like Jupyter's "Run all".

    ``env`` is added to the kernel's environment. The kernel is stopped at the end. Fails the test with the traceback of
    a cell that raises.
    """
    made = nbformat.read(notebook, as_version=4) if isinstance(notebook, (str, Path)) else notebook
    # Do not use the settings and history of the user's Jupyter.
    own = {f"JUPYTER_{name}_DIR": str(folder / f".jupyter-{name.lower()}") for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **own, "IPYTHONDIR": str(folder / ".ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    client = NotebookClient(
        made,
        timeout=timeout_s,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        allow_errors=False,
    )
    try:
        client.execute(env={**environment, **(env or {})})
    except CellExecutionError as error:
        raise AssertionError(f"a cell failed:\n{error.traceback}") from None
    return Ran(made)
