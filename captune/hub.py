"""Location of model files: a folder, a toy model that is part of captune, or the Hugging Face hub.

`resolve_model` checks a model once; the loading functions take the record that it returns. Needs no torch, so that a
command refuses a wrong name before its heavy imports.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from captune.common import did_you_mean
from captune.config import ModelConfig
from captune.errors import ConfigError, WeightsError
from captune.parsing import load_json
from captune.run_checkpoints import ADAPTER, RECORD, TRAINED, CheckpointRecord, selected_checkpoint, tensor_file
from captune.weights import base_model_of, has_image_processor, holds_adapter, refuse_pointers

__all__ = [
    "MINIGPT4",
    "TOY",
    "ModelKind",
    "ResolvedModel",
    "check_base",
    "checkpoint_base",
    "detect_offline",
    "is_hub_id",
    "is_on_hub",
    "kind_of_model",
    "locate_base",
    "locate_checkpoint",
    "locate_model",
    "missing_base",
    "processor_base",
    "recorded_name",
    "refuse_checkpoint",
    "require_available",
    "resolve_model",
    "takes_base",
]

TOY = {"toy": "pretrained", "toy-vlm": "pretrained_vlm"}
"""Models that come with captune: names, and folders in `captune/toy`."""
MINIGPT4 = "captune_minigpt4"
"""The `model_type` of a MiniGPT-4 in its config.json."""
ModelKind = Literal["model", "checkpoint", "adapter", "hub", "parts"]
_ANSWER_TIMEOUT = 5.0  # seconds for an answer of the hub
_CONNECT_TIMEOUT = 1.0
"""Seconds for a connection to the hub; without one the library would retry for a minute."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files were located and checked, for the functions that load it.

    Attributes:
        name: of the model in messages and records, as configured.
        kind: "model" is a folder with a config.json, "checkpoint" one of a training run, "adapter" one of peft; "hub"
            is a hub id, of which only the download tells the kind; "parts" is a new captioner of `llm` and `vision`.
        path: folder or hub id; empty for parts.
        llm: folder or hub id of the language model of a new captioner.
        vision: folder or hub id of its vision tower.
        dtype: number format of the frozen parts; "auto" depends on the device.
        quantization: of the language model; None is none.
        legacy_bugs: bugs of the original code to reproduce.
        max_pixels: largest number of pixels of an image, if the processor has such a limit; None is its default.
        min_pixels: smallest number of pixels.
        base: folder or hub id of the base model of a checkpoint or adapter; empty is the recorded one.
    """

    name: str
    kind: ModelKind
    path: str = ""
    llm: str = ""
    vision: str = ""
    dtype: str = "auto"
    quantization: str | None = None
    legacy_bugs: tuple[str, ...] = ()
    max_pixels: int | None = None
    min_pixels: int | None = None
    base: str = ""


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id (`user/model` or `model`) and not that of a path."""
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def locate_model(name: str) -> str:
    """The folder or hub id of a model: `toy` and `toy-vlm` come with captune, a run has a best checkpoint.

    Other names are returned unchanged. Where the hub is needed and cannot be reached, its library is switched to
    offline mode (`detect_offline`).

    Raises:
        WeightsError: the name has the form of a path and there is no such folder, or the folder holds no
            model or pointers of git-lfs; or a run has no such checkpoint.
    """
    if name in TOY:
        return str(files("captune") / "toy" / TOY[name])
    selected = selected_checkpoint(name)
    if selected is not None:
        name = str(selected.folder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        # A checkpoint of a run or a peft adapter names its base model, which is loaded with it.
        if _kind(folder) is None:
            raise WeightsError(_no_model(name, folder))
        refuse_pointers(folder)
        return str(folder)
    if folder.exists() or not is_hub_id(name):
        siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        hint = did_you_mean(str(folder), siblings)
        give = f"{hint} Give" if hint else "give"
        raise WeightsError(
            f"There is no model folder {name}; {give} the folder of a captune model (`captune convert` "
            "makes one of the original files), a hub id, 'toy' or 'toy-vlm'."
        )
    detect_offline()
    return name


def _no_model(name: str, folder: Path) -> str:
    """The sentence that refuses a folder that is no model; names a checkpoint of a trainer in it."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _kind(path) is not None]
    if checkpoints:
        last = max(checkpoints, key=lambda path: (len(path.name), path.name))
        return (
            f"{name} holds checkpoints of a trainer and no model itself; give one of them, such as {last} (the last)."
        )
    return (
        f"{name} holds neither config.json nor adapter_config.json; expected a model or adapter that save_pretrained "
        "wrote, a checkpoint, or a captune model, which `captune convert` makes of the original files."
    )


def recorded_name(name: str) -> str:
    """The name of a model as records store it: a hub id, a model that comes with captune, or an absolute folder."""
    if name in TOY or not Path(located := locate_model(name)).is_dir():
        return name
    return os.path.abspath(located)


def locate_base(name: str, checkpoint: Path, relative: str | None = None) -> str:
    """The folder or hub id of the base model of a checkpoint, which may have been moved with it.

    Args:
        name: as recorded: `recorded_name`, or in checkpoints of older versions a folder relative to an unknown one.
        checkpoint: its folder.
        relative: the base model's folder relative to the checkpoint's, if it was recorded.

    Raises:
        WeightsError: there is no such folder, and the name is not that of a model on the hub.
    """
    if name not in TOY and not Path(name).expanduser().is_dir():
        candidates = [] if relative is None else [checkpoint / relative]
        if not Path(name).is_absolute():
            candidates += [parent / name for parent in Path(os.path.abspath(checkpoint)).parents]
        moved = next((folder for folder in candidates if folder.is_dir() and _kind(folder) is not None), None)
        if moved is not None:
            return locate_model(str(Path(os.path.abspath(moved))))
    return locate_model(name)


def checkpoint_base(checkpoint: str | Path, record: CheckpointRecord, base: str = "") -> tuple[ResolvedModel, str]:
    """The transformers model that a checkpoint was trained on, with its pixel limits, and its name in messages.

    Args:
        checkpoint: its folder.
        record: of the checkpoint.
        base: folder or hub id of the base model; empty is the recorded one.

    Raises:
        WeightsError: it does not exist.
    """
    checkpoint = Path(checkpoint)
    name = base or record.model
    if not base and tensor_file(checkpoint).name == ADAPTER:
        # A folder that was set for other programs since.
        edited, _ = base_model_of(checkpoint)
        base = edited if Path(edited).is_dir() else ""
    try:
        resolved = resolve_model(base or locate_base(record.model, checkpoint, record.relative_model))
        require_available(resolved.path)
    except WeightsError as error:
        raise missing_base(f"The checkpoint {checkpoint}", name, record.frozen, error) from error
    resolved = replace(resolved, name=name, max_pixels=record.max_pixels, min_pixels=record.min_pixels)
    return resolved, f"{name} (base model of the checkpoint {checkpoint})"


def missing_base(what: str, name: str, weights: str, error: Exception) -> WeightsError:
    """The error of a checkpoint or adapter whose base model is missing.

    Args:
        what: "The checkpoint runs/photos/checkpoints/epoch-000".
        name: the base model, as recorded or as named.
        weights: hash of its frozen weights; empty if unknown.
        error: why it cannot be loaded.
    """
    moved = Path(name).is_absolute() and not Path(name).exists()
    reason = "and there is no such folder" if moved else f"which cannot be loaded: {str(error).rstrip('.')}"
    hashed = f" (weights {weights})" if weights else ""
    return WeightsError(
        f"{what} was trained on the model {name}{hashed}, {reason}. If it has moved, give its folder or hub id with "
        "--base, or base= in Python."
    )


def takes_base(name: str) -> bool:
    """Whether a model is the folder of an adapter or checkpoint, or of a model without processor, and needs a base."""
    folder = Path(name if (selected := selected_checkpoint(name)) is None else selected.folder).expanduser()
    return _kind(folder) in ("adapter", "checkpoint") or holds_adapter(folder) or lacks_processor(folder)


def lacks_processor(folder: Path) -> bool:
    """Whether a folder is the checkpoint of a trainer of complete models that saved no processor."""
    of_trainer = any((folder / name).is_file() for name in ("trainer_state.json", "training_args.bin"))
    return of_trainer and (folder / "config.json").is_file() and not has_image_processor(folder)


def processor_base(folder: Path) -> str:
    """The model that a complete model without processor was trained from, of which its settings may have the name.

    Raises:
        WeightsError: they do not.
    """
    try:
        name = load_json((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        name = None
    if isinstance(name, str) and name and Path(name).expanduser().resolve() != folder.resolve():
        return name
    raise WeightsError(
        f"{folder} holds no processor, as a trainer without processing_class saves it; give the folder or hub id of "
        "the model that it was trained from with --base, or base= in Python."
    )


def check_base(name: str) -> None:
    """Refuse the folder of a peft adapter whose base model is missing, and one whose processor is.

    Raises:
        WeightsError: names the base model and `--base`.
    """
    folder = Path(locate_model(name))
    if holds_adapter(folder) and not (folder / "checkpoint.json").is_file():
        base, _ = base_model_of(folder)
        try:
            require_available(locate_model(base))
        except WeightsError as error:
            raise missing_base(f"The adapter {name}", base, "", error) from error
    elif lacks_processor(folder):
        require_available(locate_model(processor_base(folder)))


def _kind(folder: Path) -> ModelKind | None:
    kinds: dict[str, ModelKind] = {
        "config.json": "model",
        "checkpoint.json": "checkpoint",
        "adapter_config.json": "adapter",
    }
    return next((kind for file, kind in kinds.items() if (folder / file).is_file()), None)


def locate_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint or an adapter, downloaded if it is on the hub.

    Args:
        name: the folder itself, or that of a run, of which it is the best one, or `RUN@epoch1`, or a hub id.

    Raises:
        WeightsError: there is no such checkpoint.
    """
    folder = Path(name).expanduser()
    if _is_trained(folder):
        return folder.resolve() if folder.is_symlink() else folder
    selected = selected_checkpoint(name)
    if selected is not None:
        return selected.folder
    if not folder.exists() and is_hub_id(str(name)) and not (folder.parent != Path() and folder.parent.is_dir()):
        return _download_checkpoint(str(name))
    here = sorted(path.parent.name for path in folder.parent.glob("epoch-*/checkpoint.json"))
    expected = f"there are {', '.join(here)}" if here else "expected a folder such as runs/stage1/checkpoints/epoch-003"
    state = "No checkpoint is in" if folder.is_dir() else "There is no folder"
    raise WeightsError(f"{state} {name}; {expected}, or the folder of a run.")


def _is_trained(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, or the tensors of an adapter."""
    if (folder / RECORD).is_file():
        return True
    is_complete = (folder / "config.json").is_file()
    return not is_complete and (folder / "adapter_config.json").is_file() and (folder / ADAPTER).is_file()


def _download_checkpoint(name: str) -> Path:
    """The folder of a checkpoint or an adapter of the hub, in the cache.

    Raises:
        WeightsError: the hub does not provide it, or it is another kind of model.
    """
    from huggingface_hub import snapshot_download

    if detect_offline() and not _is_cached(name):
        raise WeightsError(
            f"There is no folder {name}, and no connection to the Hugging Face hub, whose cache here does not hold a "
            "repository of this name either; give the folder of a checkpoint or of a run, or download it first."
        )
    try:
        # Not the weights of a complete model.
        folder = Path(snapshot_download(name, allow_patterns=["*.json", TRAINED, ADAPTER]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise WeightsError(
            f"There is no folder {name}, and the Hugging Face hub does not provide it: {reason}."
        ) from error
    if not _is_trained(folder):
        raise WeightsError(
            f"{name} on the Hugging Face hub has neither a {RECORD} of captune nor an adapter of peft in safetensors; "
            "a complete model is set as model.path."
        )
    return folder


def kind_of_model(source: ResolvedModel) -> Literal["minigpt4", "transformers"] | None:
    """Whether a model is a MiniGPT-4 or one of transformers; None for a hub id whose configuration is not in the cache.

    Its configuration is read as JSON, without a library.
    """
    if source.kind == "parts":
        return "minigpt4"
    path: object = Path(source.path) / "config.json"
    if source.kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(source.path, "config.json")
    elif source.kind != "model":
        return None
    try:
        kind = load_json(Path(str(path)).read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return "minigpt4" if kind == MINIGPT4 else "transformers"


def refuse_checkpoint(source: ResolvedModel) -> None:
    """Refuse a checkpoint as the model of a run.

    Raises:
        ConfigError: says how a run continues from it.
    """
    if source.kind != "checkpoint":
        return
    try:
        base = str(load_json((Path(source.path) / "checkpoint.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        base = "its base model"
    raise ConfigError(
        f"model.path is {source.name}, which is a checkpoint of a run; to continue from its weights, set model.path to "
        f"{base} and train.start to {source.name}."
    )


def resolve_model(model: str | ModelConfig | ResolvedModel) -> ResolvedModel:
    """Locate the files of a model, and refuse what is wrong before anything is loaded.

    Args:
        model: a name (folder, hub id, `toy` or `toy-vlm`) or a configuration; a record of this function is returned
            unchanged.

    Raises:
        WeightsError: a model or a part of one has the form of a path, and there is no such folder.
        ConfigError: the parts of a new captioner are of a kind that only `captune convert` joins.
    """
    if isinstance(model, ResolvedModel):
        return model
    if isinstance(model, str):
        path = locate_model(model)
        return ResolvedModel(model, _kind(Path(path)) or "hub", path)
    if model.llm is None:
        return replace(
            resolve_model(model.path),
            dtype=model.dtype,
            quantization=model.quantization,
            legacy_bugs=model.legacy_bugs,
            max_pixels=model.max_pixels,
            min_pixels=model.min_pixels,
        )
    if Path(str(model.vision)).is_file():
        raise ConfigError(
            f"model.vision is the file {model.vision}; join it with {model.llm} by `captune convert --llm "
            f"{model.llm} --vision {model.vision} --out FOLDER` first, and give the folder as model.path."
        )
    for setting, name in (("model.llm", str(model.llm)), ("model.vision", str(model.vision))):
        if not Path(name).expanduser().is_dir():
            if not is_hub_id(name):
                raise WeightsError(f"{setting} is {name}, and there is no such folder; give a folder or a hub id.")
            detect_offline()
    return ResolvedModel(
        model.name,
        "parts",
        llm=model.llm,
        vision=str(model.vision),
        dtype=model.dtype,
        quantization=model.quantization,
        legacy_bugs=model.legacy_bugs,
    )


def require_available(name: str) -> None:
    """Refuse a hub id that is not in the cache where the hub cannot be reached; folders and the toy models pass.

    Raises:
        WeightsError: names the model.
    """
    if name in TOY or Path(name).expanduser().is_dir() or not detect_offline():
        return
    if not _is_cached(name):
        raise WeightsError(
            f"{name} cannot be read: there is no such folder here, and no connection to the Hugging Face hub, whose "
            "cache here does not hold it either; give the folder of a model, or download it first."
        )


def is_on_hub(name: str) -> bool | None:
    """Whether a hub id is a model in the cache or on the hub.

    Returns:
        False if no public model of that name exists on the hub; None if the hub cannot be reached.
    """
    if _is_cached(name):
        return True
    if detect_offline():
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_ANSWER_TIMEOUT)
    except GatedRepoError:
        return True
    except (RepositoryNotFoundError, HFValidationError):
        return False
    except Exception:  # of several HTTP libraries, by the release of the hub's
        return None
    return True


def _is_cached(name: str) -> bool:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").is_dir()


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
