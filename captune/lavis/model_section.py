"""The original's `model:` in captune's words."""

from __future__ import annotations

from typing import Any

from captune.lavis.keys import ARCHS, IN_THE_FOLDER, MODEL_KEYS, PLAIN_DATASETS, READ_BY
from captune.lavis.reader import Reader

__all__ = ["model_settings"]


def model_settings(reader: Reader, given: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The model section in captune's words."""
    reader.known("model", given, MODEL_KEYS)
    arch = given.get("arch")
    if arch not in ARCHS:
        raise reader.error(f"model.arch is {arch!r}; expected one of: {', '.join(ARCHS)}")
    read = READ_BY[ARCHS[arch]]
    for key in given:
        if key not in read:
            reader.dead(f"model.{key}", f"arch {arch} does not read it")
    path = _path(reader, given)
    own = [name for name in datasets if name not in PLAIN_DATASETS]
    if "prompt_path" in given and "prompt_path" in read:
        if own and len(own) == len(datasets):
            for key in ("prompt_path", "prompt_template"):
                if key in given:
                    reader.dead(f"model.{key}", f"{own[0]} brings instructions of its own, which are not wrapped")
        else:
            reader.note(
                "model.prompt_path: one of its prompts was drawn for each batch; here model.instruction is asked "
                "of every image, in training and in evaluation."
            )
    carried = [key for key in given if key in IN_THE_FOLDER & read]
    if carried:
        named = ", ".join(f"model.{key}" for key in carried)
        reader.note(f"{named}: the model's folder says this; `captune convert` writes it.")
    if given.get("low_resource"):
        reader.note("model.low_resource: int8 made the original slower; to save memory set model.quantization to int8.")
    for key in ("freeze_vit", "freeze_qformer"):
        if given.get(key) is False:
            raise reader.error(f"model.{key} is false; captune keeps the vision side frozen")
    return {"path": path}


def _path(reader: Reader, given: dict[str, Any]) -> str:
    checkpoint = given.get("ckpt")
    if not checkpoint:
        reader.note("model.ckpt is not given; set model.path to the folder that `captune convert` wrote.")
        return "./weights/minigpt4-vicuna-7b"
    checkpoint = reader.text("model.ckpt", checkpoint)
    if not checkpoint.endswith(".pth"):
        return checkpoint
    folder = checkpoint.removesuffix(".pth")
    reader.note(
        f"model.ckpt is {checkpoint}; captune reads the folder {folder}, which `captune convert --checkpoint "
        f"{checkpoint} --out {folder}` makes with the language model and the vision files."
    )
    return folder
