"""One row: llama-server's allocations compared with the plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gguf

from llamatel.plan import CachePlan, ModelShape, cache_plan, parse_server_flags, shape_from_metadata
from llamatel.plan.llama_build import LlamaBuild

from .grid import Flags
from .harness import Allocation, Bench, variables_of
from .models import TinyModel
from .writer import VOCABULARY, full_key

COLUMNS = ("k", "v", "r", "s", "other")


@dataclass(frozen=True)
class Row:
    model: TinyModel
    flags: Flags
    allocation: Allocation
    plan: CachePlan
    draft: TinyModel | None = None

    @property
    def equal(self) -> bool:
        """Whether all columns have the same bytes, or both refuse with the same reason."""
        if self.plan.refused is not None:
            if self.allocation.outcome == "aborted":
                return "aborts" in self.plan.refused
            return self.allocation.outcome == "refused" and self.plan.refused in self.allocation.output
        if self.allocation.outcome == "refused":
            return False
        return all(self.allocation.bytes_of(column) == self.plan.bytes_of(column) for column in COLUMNS)

    def __str__(self) -> str:
        if self.plan.refused is not None:
            ours = f"refused: {self.plan.refused}"
        else:
            ours = " ".join(f"{column} {self.plan.bytes_of(column)}" for column in COLUMNS)
        theirs = " ".join(f"{column} {self.allocation.bytes_of(column)}" for column in COLUMNS)
        if self.allocation.outcome == "refused":
            theirs += " " + next((line for line in self.allocation.output.splitlines() if " E " in line), "")
        name = self.model.name + (f" -md {self.draft.name}" if self.draft is not None else "")
        return f"{name} {' '.join(self.flags)}\n  ours   {ours}\n  theirs {self.allocation.outcome}: {theirs}"


def shape_of(model: TinyModel, tensor_names: set[str], build: LlamaBuild | None = None) -> ModelShape:
    """Return the shape, from the metadata that the model is written with."""
    metadata = {full_key(model.architecture, key): value for key, value in model.metadata.items()}
    metadata |= {"general.architecture": model.architecture, f"{model.architecture}.vocab_size": VOCABULARY}
    metadata["general.file_type"] = int(gguf.LlamaFileType.ALL_F32)
    return shape_from_metadata(metadata, tensor_names, build)


@dataclass(frozen=True)
class Written:
    """A model of the suite as a file, with the names of its tensors."""

    model: TinyModel
    path: Path
    names: frozenset[str]


def compare(
    bench: Bench, written: Written, draft: Written | None, flags: Flags, build: LlamaBuild | None = None
) -> Row:
    """Start the server with these flags, and ``draft`` as draft model, and compare."""
    shape = shape_of(written.model, set(written.names), build)
    draft_flags: Flags = ()
    if draft is not None:
        shape = replace(shape, draft=shape_of(draft.model, set(draft.names), build))
        draft_flags = ("-md", str(draft.path))
    variables, arguments = variables_of(flags)
    plan = cache_plan(shape, parse_server_flags((*bench.always, *draft_flags, *arguments), environ=variables))
    return Row(
        written.model,
        flags,
        bench.allocate(written.path, (*draft_flags, *flags)),
        plan,
        None if draft is None else draft.model,
    )
