"""Memory by llama.cpp's own ``llama-fit-params``, which loads without allocating and prints what it would allocate."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llamatel.errors import BackendNotFound, LlamatelError
from llamatel.flags.server_settings import ServerSettings

PROGRAM = "llama-fit-params"
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One device's line, in whole MiB as the program prints them."""

    device: str
    model_mib: int
    context_mib: int
    compute_mib: int


def find_program() -> str:
    """``llama-fit-params`` next to the llama-server in use, else on PATH. Raises BackendNotFound."""
    server = os.environ.get("LLAMATEL_LLAMA_SERVER") or shutil.which("llama-server")
    if server:
        sibling = Path(server).resolve().with_name(PROGRAM)
        if os.access(sibling, os.X_OK):
            return str(sibling)
    found = shutil.which(PROGRAM)
    if found is None:
        raise BackendNotFound(f"no {PROGRAM} next to llama-server or on PATH; it comes with llama.cpp")
    return found


def flags_for(settings: ServerSettings) -> list[str]:
    """The program's flags. It has no unified pool: slots that share one are measured as one sequence."""
    flags = ["-c", str(settings.ctx_size or 0), "-np", "1" if settings.unified else str(settings.slots)]
    flags += ["-b", str(settings.batch_size), "-ub", str(settings.ubatch_size), "-fa", settings.flash_attn]
    flags += ["-ctk", settings.cache_type_k, "-ctv", settings.cache_type_v, "-sm", settings.split_mode]
    flags += ["--swa-full"] * settings.swa_full + ["-nkvo"] * (not settings.kv_offload)
    if settings.gpu_layers is not None:
        flags += ["-ngl", str(settings.gpu_layers)]
    if settings.tensor_split:
        flags += ["-ts", ",".join(f"{share:g}" for share in settings.tensor_split)]
    return flags


def parse_measured(text: str) -> list[Measured]:
    """The lines ``device model context compute`` of its standard output."""
    found = re.findall(r"^(\S+) (\d+) (\d+) (\d+) *$", text, re.MULTILINE)
    return [Measured(name, int(model), int(context), int(compute)) for name, model, context, compute in found]


def measure(model: Path, settings: ServerSettings, program: str) -> list[Measured]:
    """What llama.cpp would allocate. Raises LlamatelError if it does not report it."""
    command = [program, "-m", str(model), "-fitp", "on", *flags_for(settings)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LlamatelError(f"{PROGRAM} did not measure: {error}") from error
    lines = parse_measured(done.stdout)
    if not lines:
        reasons = re.findall(r" E (.+)", done.stderr)
        raise LlamatelError(f"{PROGRAM} did not measure: {reasons[0] if reasons else f'exit status {done.returncode}'}")
    return lines
