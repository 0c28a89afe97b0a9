"""llamatel's command line with a GPU replayed from a recording of an H100: ``python -m tests.recorded_gpu serve ...``.

The card is idle while the server that ``serve`` launched uses no CPU time, and loaded while it does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from llamatel.cli.main import main
from tests.nvml import Recorded

_H100 = json.loads((Path(__file__).parent / "data" / "nvml_h100.json").read_text())
_TICKS = os.sysconf("SC_CLK_TCK")
_POWER, _ENERGY = "nvmlDeviceGetPowerUsage(0)", "nvmlDeviceGetTotalEnergyConsumption(0)"


class RecordedUnderLoad(Recorded):
    """Mixes the recordings of an idle and of a loaded GPU by the CPU use of this process's children."""

    def __init__(self) -> None:
        super().__init__(_H100["idle"])
        self._read_at = self._cpu_s = self._energy_mj = 0.0
        self._load = 0.0

    def _answer(self, key: str, **default: Any) -> Any:
        if time.monotonic() - self._read_at > 0.5:
            self._follow()
        return super()._answer(key, **default)

    def _follow(self) -> None:
        pids = [int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
        cpu_s = sum(_cpu_s(pid) for pid in pids)
        passed = time.monotonic() - self._read_at
        self._load = min(1.0, 1.5 * max(0.0, cpu_s - self._cpu_s) / passed)
        self._read_at, self._cpu_s = time.monotonic(), cpu_s
        idle, loaded = _H100["idle"], _H100["loaded"]
        for call, value in loaded.items():
            before = idle.get(call)
            if "Energy" not in call and "Reasons" not in call and "Memory" not in call:
                self.calls[call] = _between(before, value, self._load)
        self._energy_mj += self.calls[_POWER] * min(passed, 5.0)
        self.calls[_ENERGY] = idle[_ENERGY] + round(self._energy_mj)
        held = _H100["recorded"]["server"]["process_bytes"]
        self.calls["nvmlDeviceGetComputeRunningProcesses(0)"] = [{"pid": pid, "usedGpuMemory": held} for pid in pids]
        memory = dict(loaded["nvmlDeviceGetMemoryInfo(0)"])
        for call in [call for call in self.calls if call.startswith("nvmlDeviceGetMemoryInfo(0")]:
            self.calls[call] = {**self.calls[call], **(memory if pids else {})}


def _between(idle: Any, loaded: Any, load: float) -> Any:
    if isinstance(idle, dict) and isinstance(loaded, dict):
        return {name: _between(value, loaded.get(name), load) for name, value in idle.items()}
    return round(idle + load * (loaded - idle)) if isinstance(idle, int) and isinstance(loaded, int) else idle


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    recorded: Any = RecordedUnderLoad()
    sys.modules["pynvml"] = recorded
    sys.exit(main(sys.argv[1:]))
