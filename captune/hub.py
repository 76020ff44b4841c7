"""Where a model's files are: a folder of this machine, the toy that comes with captune, or a hub id.

Needs no torch, so that a command refuses a wrong name before its heavy imports.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from captune.errors import ConfigError, WeightsError
from captune.weights.pointers import refuse_pointers

if TYPE_CHECKING:
    from captune.config import ModelConfig

__all__ = ["TOY", "check_model", "detect_offline", "is_hub_id", "require_available", "resolve_model"]

TOY = "toy"
_CONNECT_TIMEOUT = 3.0
"""Seconds for a connection to the hub; without one the library would retry for a minute."""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id (`user/model` or `model`) and not that of a path."""
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def resolve_model(name: str) -> str:
    """Where a model's files are: `toy` is the model that comes with captune; folders and hub ids stay as they are.

    For a hub id, a machine without network is detected at once (`detect_offline`).

    Raises:
        WeightsError: the name has the form of a path and there is no such folder, or the folder holds no
            model or pointers of git-lfs.
    """
    if name == TOY:
        return str(files("captune") / "toy" / "pretrained")
    folder = Path(name).expanduser()
    if folder.is_dir():
        # A checkpoint of a run or a peft adapter names its base model, which is loaded with it.
        if not any((folder / record).is_file() for record in ("config.json", "checkpoint.json", "adapter_config.json")):
            raise WeightsError(
                f"{name} holds no config.json; expected a captune model, which `captune convert` makes of the original "
                "files and save_pretrained writes."
            )
        refuse_pointers(folder)
        return str(folder)
    if folder.exists() or not is_hub_id(name):
        raise WeightsError(
            f"There is no model folder {name}; give the folder of a captune model (`captune convert` makes one of the "
            "original files), a hub id, or 'toy'."
        )
    detect_offline()
    return name


def check_model(config: ModelConfig) -> None:
    """Refuse what can be known to be wrong before anything is loaded.

    Raises:
        WeightsError: a model or a part of one has the form of a path, and there is no such folder.
        ConfigError: the parts of a new captioner are of a kind that only `captune convert` joins.
    """
    if config.llm is None:
        resolve_model(config.path)
        return
    if Path(str(config.vision)).is_file():
        raise ConfigError(
            f"model.vision is the file {config.vision}; join it with {config.llm} by `captune convert --llm "
            f"{config.llm} --vision {config.vision} --out FOLDER` first, and give the folder as model.path."
        )
    for setting, name in (("model.llm", str(config.llm)), ("model.vision", str(config.vision))):
        if not Path(name).expanduser().is_dir():
            if not is_hub_id(name):
                raise WeightsError(f"{setting} is {name}, and there is no such folder; give a folder or a hub id.")
            detect_offline()


def require_available(name: str) -> None:
    """Refuse a hub id that is not in the cache where the hub cannot be reached; folders and `toy` pass.

    Raises:
        WeightsError: names the model.
    """
    if name == TOY or Path(name).expanduser().is_dir() or not detect_offline():
        return
    from huggingface_hub import constants

    if not Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").is_dir():
        raise WeightsError(
            f"{name} cannot be read: there is no such folder here, and no connection to the Hugging Face hub, whose "
            "cache here does not hold it either; give the folder of a model, or download it first."
        )


@lru_cache(maxsize=1)
def detect_offline() -> bool:
    """Switch the hub's library to its offline mode where no connection to the hub can be made.

    Offline, the library uses its cache and fails at once; otherwise it would retry each file for a minute. The first
    call of a process tries one connection.

    Returns:
        Whether this process is offline.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _accepts_connection(constants.ENDPOINT):
        os.environ["HF_HUB_OFFLINE"] = "1"  # of child processes
        constants.HF_HUB_OFFLINE = True
    return constants.HF_HUB_OFFLINE


def _accepts_connection(address: str) -> bool:
    """Whether a server, or the proxy in front of it, accepts a connection."""
    endpoint = urlsplit(address)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        endpoint = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True
