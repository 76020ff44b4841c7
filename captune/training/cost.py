"""What a run costs besides time: the peak of its memory, and energy where the machine counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["CostMeter"]

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the energy of whole processor packages (RAPL), in microjoules."""


class CostMeter:
    """Measures from its making on.

    Args:
        device: where the run computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _energy(device)

    def read(self) -> dict[str, float]:
        """`peak_memory` in bytes, of the GPU or of this process, and `energy` in joules where it is known."""
        cost = {"peak_memory": float(_peak_memory(self._device))}
        now = _energy(self._device)
        used = [now[name] - self._before[name] for name in now.keys() & self._before.keys()]
        # A counter that has begun again says nothing.
        if used and min(used) >= 0:
            cost["energy"] = round(sum(used), 1)
        return cost


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _energy(device: torch.device) -> dict[str, float]:
    """Joules that were used so far, by counter; empty where there is none that may be read."""
    counters: dict[str, float] = {}
    if device.type == "cuda":
        nvml = _nvml()
        if nvml is not None:
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            counters["gpu"] = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    for counter in POWERCAP.glob("intel-rapl:*/energy_uj"):
        # Packages have one colon in their name, parts of them two.
        if counter.parent.name.count(":") == 1:
            try:
                counters[counter.parent.name] = int(counter.read_text()) / 1e6
            except (OSError, ValueError):
                continue
    return counters


def _nvml() -> Any:
    """NVIDIA's management library where its Python package and its driver are there."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # without a driver it raises errors of its own
        return None
    return pynvml
