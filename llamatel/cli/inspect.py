"""``llamatel inspect``: describes a model from its header alone, local or remote."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from llamatel.cli.options import verbose_option
from llamatel.errors import UsageError
from llamatel.gguf.file_kinds import not_a_model
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.model_choices import Choices, ModelConfig
from llamatel.gguf.model_reference import read_reference
from llamatel.plan.model_report import ModelReport, report_of
from llamatel.plan.shape_from_config import shape_from_config


@contextlib.contextmanager
def fetching(reference: str) -> Iterator[Callable[[int], None] | None]:
    """Show on a terminal's standard error how much of a header was fetched; removed when it is complete."""
    if not sys.stderr.isatty() or "/" not in reference:
        yield None
        return
    with contextlib.ExitStack() as stack:
        bar: list[Callable[[int], None]] = []  # one, once there is something to show

        def step(n_bytes: int) -> None:
            if not bar:
                bar.append(_bar(stack))
            bar[0](n_bytes)

        yield step


def _bar(stack: contextlib.ExitStack) -> Callable[[int], None]:
    """A progress bar until ``stack`` closes; returns the function to call with the bytes of each step."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from llamatel.cli.console import note_console

    columns = (TextColumn("reading the header"), BarColumn(bar_width=20), DownloadColumn(binary_units=True))
    progress = stack.enter_context(Progress(*columns, console=note_console(), transient=True))
    task = progress.add_task("header", total=None)
    return lambda n_bytes: progress.update(task, advance=n_bytes)


def _report(model: GGUFHeader | ModelConfig, reference: str) -> ModelReport:
    if isinstance(model, GGUFHeader):
        return report_of(model, reference if Path(reference).exists() else None)
    return ModelReport(
        model.name, shape_from_config(model.config), config=model.config, reported_parameters=model.parameters
    )


def _choices_as_dict(found: Choices) -> dict[str, object]:
    return {
        "model": found.name,
        "choices": [
            {
                "reference": found.reference(choice),
                "path": choice.path,
                "file_bytes": choice.size,
                "file_type": choice.quant,
                "files": choice.files,
            }
            for choice in found.choices
        ],
    }


@click.command("inspect")
@click.argument("model")
@click.option("--layers", is_flag=True, help="Each layer's heads, window, and the shapes of its Q, K, V and O.")
@click.option("--tensors", is_flag=True, help="Every tensor's name, shape, type and size.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with all metadata.")
@verbose_option
def command(model: str, layers: bool, tensors: bool, as_json: bool) -> None:
    """Describe a model: attention, KV cache, parameters, tokenizer. Reads only its header.

    MODEL is a GGUF file, a folder, an address (https://.../x.gguf), or on the Hugging Face Hub org/repo,
    org/repo:Q4_K_M or hf://org/repo/file.gguf; ollama://model:tag; a config.json; or tiny, which llamatel ships.
    """
    with fetching(model) as progress:
        found = read_reference(model, progress=progress)
    if isinstance(found, Choices):
        if as_json:
            print(json.dumps(_choices_as_dict(found), indent=2))
        else:
            _show_choices(found)
        return
    report = _report(found, model)
    what = not_a_model(found) if isinstance(found, GGUFHeader) else None
    if what is not None and not tensors:
        if as_json:
            print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
        raise UsageError(f"{model}: {what}")
    if as_json:
        print(json.dumps(report.as_dict(layers=layers, tensors=tensors), indent=2, allow_nan=False))
    else:
        _show(report, layers, tensors)


def _show_choices(found: Choices) -> None:
    from llamatel.cli.console import output_console
    from llamatel.ui.view.glyphs import glyphs_for
    from llamatel.ui.view.model_page import choices_text

    console = output_console()
    console.print(choices_text(found, glyphs_for(console.encoding)), soft_wrap=True)


def _show(report: ModelReport, layers: bool, tensors: bool) -> None:
    from rich.text import Text

    from llamatel.cli.console import output_console
    from llamatel.ui.view.glyphs import glyphs_for
    from llamatel.ui.view.model_page import layers_text, model_text, tensors_text

    console = output_console()
    glyphs = glyphs_for(console.encoding)
    console.print(model_text(report, glyphs), soft_wrap=True)
    if layers:
        console.print(Text("\nlayers", "bold"))
        width = console.width if console.is_terminal else None
        console.print(layers_text(report, glyphs, width), soft_wrap=True)
    if tensors and report.header is not None:
        console.print(Text("\ntensors", "bold"))
        console.print(tensors_text(report.header.tensors or (), glyphs), soft_wrap=True)
