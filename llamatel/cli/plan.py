"""``llamatel plan``: the memory that a server with a model needs, what fits, and the possible speed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llamatel.cli.inspect import fetching
from llamatel.cli.options import model_options, verbose_option
from llamatel.errors import BackendNotFound, GGUFError, UsageError
from llamatel.flags.parse import parse_server_flags, without_uncounted
from llamatel.flags.server_settings import ServerSettings
from llamatel.gguf.header import GGUFHeader
from llamatel.gguf.model_choices import Choices, ModelConfig
from llamatel.gguf.model_reference import read_reference
from llamatel.gguf.split_files import parse_gguf_header
from llamatel.gpu.visible_devices import visible_devices
from llamatel.inputs.text_file import user_path
from llamatel.llama.server.backends import build_of, find_backend
from llamatel.models import tiny_model
from llamatel.plan.adapters import with_lora, with_projector_weights
from llamatel.plan.architectures import architecture_of
from llamatel.plan.devices import Device, parse_devices
from llamatel.plan.fit_params import find_program, measure
from llamatel.plan.gpu_catalog import GB
from llamatel.plan.llama_build import LlamaBuild, parse_build
from llamatel.plan.model_shape import ModelShape
from llamatel.plan.plan_report import PlanReport, make_report
from llamatel.plan.shape_from_config import shape_from_config
from llamatel.plan.shape_from_gguf import shape_from_gguf, unknown_architecture

_FLAGS = {
    "ctx_size": "-c",
    "n_parallel": "-np",
    "gpu_layers": "-ngl",
    "cache_type_k": "-ctk",
    "cache_type_v": "-ctv",
    "batch_size": "-b",
    "ubatch_size": "-ub",
    "flash_attn": "-fa",
    "tensor_split": "-ts",
    "split_mode": "-sm",
    "main_gpu": "-mg",
}


def flag_words(values: Mapping[str, Any]) -> list[str]:
    """Our options as llama-server's flags."""
    words: list[str] = []
    for name, flag in _FLAGS.items():
        if values.get(name) is not None:
            words += [flag, str(values[name])]
    if values.get("kv_unified") is not None:
        words.append("-kvu" if values["kv_unified"] else "-no-kvu")
    return words + ["--swa-full"] * bool(values.get("swa_full"))


def _build(text: str | None) -> LlamaBuild | None:
    """The build to plan for: the given one, else that of the server that ``llamatel serve`` would start."""
    if text is not None:
        return parse_build(text)
    try:
        return parse_build(build_of(find_backend()))
    except BackendNotFound:
        return None


def _model(reference: str, settings: ServerSettings | None = None) -> GGUFHeader | ModelConfig:
    """The model of a reference, or that of llama-server's own flags if there are ``settings``."""
    with fetching(reference) as progress:
        found = read_reference(
            reference,
            progress=progress,
            as_server=settings is not None,
            hf_file=None if settings is None else settings.hf_file,
        )
    if isinstance(found, Choices):
        raise UsageError(found.question)
    return found


def with_projector(settings: ServerSettings, model: GGUFHeader | ModelConfig) -> ServerSettings:
    """Return the settings, with the projector that ``-hf`` loads too listed as not counted."""
    projector = model.projector if isinstance(model, GGUFHeader) else None
    if projector is None or not settings.mmproj_auto or settings.mmproj is not None:
        return settings
    return replace(settings, not_counted=(*settings.not_counted, "the projector of -hf (off: --no-mmproj)"))


def _beside(shape: ModelShape, settings: ServerSettings) -> tuple[ModelShape, ServerSettings]:
    """Count the weights of adapters and of a projector, if their files can be read."""
    adapted: ModelShape | None = shape
    for path in settings.lora_adapters:
        header = _header(path)
        adapted = None if header is None or adapted is None else with_lora(adapted, header)
    if settings.lora_adapters and adapted is not None:
        shape, settings = adapted, without_uncounted(settings, "lora_adapters")
    header = None if settings.mmproj is None else _header(settings.mmproj)
    projected = None if header is None else with_projector_weights(shape, header)
    if projected is None:
        return shape, settings
    settings = without_uncounted(settings, "mmproj")
    if settings.mmproj_offload and settings.mmproj_device != "none":  # those depend on the image
        settings = replace(settings, not_counted=(*settings.not_counted, "the projector's compute buffer"))
    return projected, settings


def _header(path: str) -> GGUFHeader | None:
    try:
        return parse_gguf_header(user_path(path), read_tensors=True)
    except GGUFError:
        return None


def _shape(found: GGUFHeader | ModelConfig, build: LlamaBuild | None) -> tuple[str, ModelShape]:
    if isinstance(found, GGUFHeader):
        shape = shape_from_gguf(found, build)
        if architecture_of(shape.architecture) is None:
            raise UsageError(f"{unknown_architecture(shape.architecture)}: what it allocates is not known")
        return Path(found.path).name, shape
    return found.name, shape_from_config(found.config)


def _devices(text: str | None) -> list[Device]:
    return [] if text == "none" else parse_devices(text) if text else visible_devices()


@click.command("plan")
@click.argument("model", required=False)
@click.argument("server_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- LLAMA-SERVER FLAGS]")
@model_options()
@click.option(
    "--device", metavar="NAME[xN]", help="t4x2, rtx4090, m4-max:64G, rpc:8G, other:24G,900.  [default: what NVML sees]"
)
@click.option(
    "--host-bandwidth", type=click.FloatRange(min=0, min_open=True), metavar="GB/S", help="Bandwidth of host memory."
)
@click.option(
    "--build", metavar="BUILD", help="Plan for this llama.cpp build, such as b11549.  [default: the installed one]"
)
@click.option("--measure", "measured", is_flag=True, help="Also run llama.cpp's llama-fit-params.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@verbose_option
def command(
    model: str | None,
    server_args: tuple[str, ...],
    device: str | None,
    measured: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Show the memory that a llama-server with MODEL needs, to the byte for KV caches; what fits; the possible speed.

    MODEL is as for `llamatel inspect`. Paste a whole command line after -- (MODEL overrides its -m):

    llamatel plan -- -m model.gguf -c 32768 -np 4 -ctk q8_0 -ctv q8_0
    """
    if model is not None and model.startswith("-"):  # everything is after --
        server_args, model = (model, *server_args), None
    host_bandwidth, build = values.pop("host_bandwidth"), values.pop("build")
    settings = parse_server_flags([*flag_words(values), *server_args])
    reference = model or settings.model
    if reference is None:
        raise click.UsageError("Missing argument 'MODEL' (a GGUF, org/repo, or -- -m FILE)")
    llama = _build(build)
    found = _model(reference, settings if model is None else None)
    settings = with_projector(settings, found)
    name, shape = _shape(found, llama)
    if settings.draft_model is not None:
        draft = _model(settings.draft_model, replace(settings, hf_file=None))
        shape = replace(shape, draft=_shape(draft, llama)[1])
    shape, settings = _beside(shape, settings)
    devices = _devices(device)
    if any(each.remote for each in devices):
        settings = without_uncounted(settings, "rpc_servers")
    lines = measure(_local(reference), settings, find_program()) if measured else None
    bandwidth = None if host_bandwidth is None else host_bandwidth * GB
    report = make_report(name, shape, settings, devices, measured=lines, host_bandwidth=bandwidth)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2, allow_nan=False))
    else:
        _show(report)


def _local(reference: str) -> Path:
    path = user_path(reference)
    if reference == "tiny" and not path.exists():
        return tiny_model()
    if not path.is_file():
        raise UsageError("--measure needs the model's file on this machine")
    return path


def _show(report: PlanReport) -> None:
    from llamatel.cli.console import output_console
    from llamatel.ui.view.glyphs import glyphs_for
    from llamatel.ui.view.plan_page import plan_text

    console = output_console()
    console.print(plan_text(report, glyphs_for(console.encoding)), soft_wrap=True)
