"""The events of a run: `log.jsonl`, experiment trackers, progress listeners, memory and energy."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol, Self

import torch

from captune.data import atomic_file
from captune.errors import MissingExtraError
from captune.events import Event, Listener
from captune.parsing import load_json

__all__ = ["CostMeter", "RunLogger"]

TRANSIENT = frozenset({"features", "captions", "progress", "stage"})
"""Progress events, which are not stored."""


class _Tracker(Protocol):
    def log(self, figures: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class RunLogger:
    """Writes events to `log.jsonl`, to a tracker and to a listener.

    Args:
        folder: of the run; None writes no log (all processes except the first).
        tracker: "none", "tensorboard", "trackio" or "wandb".
        settings: the resolved configuration, for the tracker.
        listener: receives every event.
        resumed_at: optimizer steps that a resumed run has taken; the lines of later steps are dropped, because these
            are repeated.
        cost: meter for `log_cost`.

    Raises:
        MissingExtraError: the tracker is not installed.
    """

    def __init__(
        self,
        folder: Path | None,
        tracker: str = "none",
        settings: Event | None = None,
        listener: Listener | None = None,
        resumed_at: int = 0,
        cost: CostMeter | None = None,
    ) -> None:
        self._listener = listener
        self._cost = cost
        self._started = time.monotonic()
        self._file: IO[str] | None = None
        self._tracker: _Tracker | None = None
        if folder is not None:
            self._tracker = _open_tracker(tracker, folder, settings or {})
            _drop_later(folder / "log.jsonl", resumed_at)
            self._file = (folder / "log.jsonl").open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._tracker is not None:
            self._tracker.close()

    def log(self, event: str, **figures: Any) -> None:
        """Log an event.

        Args:
            event: its name.
            figures: its values, as JSON types.
        """
        entry: Event = {"event": event, **figures}
        if self._listener is not None:
            self._listener(entry)
        if self._file is None or event in TRANSIENT:
            return
        stamped = {"time": round(time.monotonic() - self._started, 3), **entry}
        self._file.write(json.dumps(stamped, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._tracker is not None and "step" in figures:
            numbers = {
                f"{event}/{key}": float(value) for key, value in figures.items() if isinstance(value, int | float)
            }
            self._tracker.log(numbers, int(figures["step"]))

    def log_cost(self) -> None:
        """Log the memory and the energy of the run so far."""
        if self._cost is not None:
            self.log("cost", **self._cost.read())


def _drop_later(log: Path, steps: int) -> None:
    """Drop the lines of a log from optimizer step `steps` on, and a half-written last line.

    Lines about more epochs stay, since the configuration has these already.
    """
    if not log.is_file():
        return
    kept, dropping = [], False
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = load_json(line)
        except ValueError:
            break
        dropping = dropping or (entry.get("event") == "step" and entry["step"] >= steps)
        if not dropping or entry.get("event") == "extended":
            kept.append(line + "\n")
    with atomic_file(log, "w") as stream:
        stream.writelines(kept)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Hosted:
    """trackio and wandb, which share their interface."""

    def __init__(self, library: Any, folder: Path, settings: Event) -> None:
        self._library = library
        library.init(project="captune", name=folder.name, config=settings)

    def log(self, figures: dict[str, float], step: int) -> None:
        self._library.log(figures, step=step)

    def close(self) -> None:
        self._library.finish()


def _open_tracker(name: str, folder: Path, settings: Event) -> _Tracker | None:
    try:
        if name == "tensorboard":
            return _TensorBoard(folder)
        if name == "trackio":
            import trackio

            return _Hosted(trackio, folder, settings)
        if name == "wandb":
            import wandb

            return _Hosted(wandb, folder, settings)
    except ImportError as error:
        raise MissingExtraError(f"tracker: {name}", "track") from error
    return None


POWERCAP = Path("/sys/class/powercap")
"""Energy counters of processor packages under Linux (RAPL), in microjoules."""


class CostMeter:
    """Measures memory and energy from its creation on.

    Args:
        device: of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = _energy(device)

    def read(self) -> dict[str, float]:
        """`peak_memory` in bytes, of the GPU or of this process, and `energy` in joules if it is available."""
        cost = {"peak_memory": float(_peak_memory(self._device))}
        now = _energy(self._device)
        used = [now[name] - self._before[name] for name in now.keys() & self._before.keys()]
        # A counter that was reset gives no result.
        if used and min(used) >= 0:
            cost["energy"] = round(sum(used), 1)
        return cost


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _energy(device: torch.device) -> dict[str, float]:
    """Joules by counter; empty if no counter can be read."""
    counters: dict[str, float] = {}
    if device.type == "cuda":
        nvml = _nvml()
        if nvml is not None:
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            counters["gpu"] = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    for counter in POWERCAP.glob("intel-rapl:*/energy_uj"):
        # Names of packages have one colon, names of their parts two.
        if counter.parent.name.count(":") == 1:
            try:
                counters[counter.parent.name] = int(counter.read_text()) / 1e6
            except (OSError, ValueError):
                continue
    return counters


def _nvml() -> Any:
    """NVIDIA's management library, or None without its Python package or driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # without a driver it raises its own errors
        return None
    return pynvml
