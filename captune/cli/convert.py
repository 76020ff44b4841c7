"""`captune convert`: original MiniGPT-4 files to captune's formats, and trained weights back to the original's."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.cli.shared_options import AsJson
from captune.errors import InputError, WeightsError
from captune.parsing import load_json
from captune.run_checkpoints import RECORD, read_record

__all__ = ["NumberFormat", "convert", "export_official"]


class Arch(StrEnum):
    """The original's architectures."""

    MINIGPT4 = "minigpt4"
    MINIGPT_V2 = "minigpt_v2"


class NumberFormat(StrEnum):
    """Number formats of the weights that are written."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def convert(
    out: Annotated[
        Path, typer.Option(help="Folder of the captune model, the .pth of --to-official, or the YAML of --config.")
    ],
    arch: Annotated[Arch, typer.Option(help="minigpt4 with or without Q-Former, or minigpt_v2.")] = Arch.MINIGPT4,
    llm: Annotated[
        str | None, typer.Option(help="Folder of the language model (Vicuna, Llama-2), or its hub id.")
    ] = None,
    vision: Annotated[
        str | None, typer.Option(help="eva_vit_g.pth; for a new captioner also a SigLIP or CLIP model.")
    ] = None,
    qformer: Annotated[
        Path | None, typer.Option(help="blip2_pretrained_flant5xxl.pth; leave it out for Llama-2 and minigpt_v2.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="pretrained_minigpt4_7b.pth, or another one; without it a new projection is made."),
    ] = None,
    dtype: Annotated[
        NumberFormat, typer.Option(help="Number format of the weights; auto keeps that of each file.")
    ] = NumberFormat.AUTO,
    vision_heads: Annotated[int, typer.Option(min=1, help="Attention heads of the vision tower.")] = 16,
    qformer_heads: Annotated[int, typer.Option(min=1, help="Attention heads of the Q-Former.")] = 12,
    conversation: Annotated[
        str | None,
        typer.Option(help="Prompt of a new captioner.", show_default="the language model's chat template"),
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="Scale of LoRA.", show_default="as stored in or next to the checkpoint")
    ] = None,
    to_official: Annotated[
        Path | None,
        typer.Option(help="The other direction: a run's checkpoint or a captune model to a .pth of the original."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML of the original (model, datasets, run), to one of captune's.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that the YAML was run with; its batch size is that of each.")
    ] = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn the original MiniGPT-4 files into captune's: a model, a checkpoint (both ways), a configuration.

    Examples:
        captune convert --llm vicuna-7b --vision eva_vit_g.pth --checkpoint prerelease.pth --out model
        captune convert --to-official runs/photos/checkpoints/epoch-002 --out tuned.pth
        captune convert --config minigpt4_finetune.yaml --out photos.yaml
    """
    _check_out(out, [llm, vision, qformer, checkpoint, to_official, config], overwrite=overwrite)
    has_files = any(file is not None for file in (llm, vision, qformer, checkpoint))
    if config is not None:
        if has_files or to_official is not None:
            raise InputError("--config takes one YAML and no other files; convert the weights in a separate call.")
        _translate(config, out, processes)
    elif to_official is not None:
        if has_files:
            raise InputError("--to-official takes one checkpoint or model and no other files.")
        export_official(to_official, out)
    elif llm is None or vision is None:
        raise InputError("Give --llm and --vision (and --qformer, --checkpoint), --to-official, or --config.")
    else:
        heads = {"vision_heads": vision_heads, "qformer_heads": qformer_heads}
        files = {"llm": llm, "vision": vision, "qformer": qformer}
        if checkpoint is None:
            _build(out, dtype, {**files, **heads, "conversation": conversation})
        else:
            trained = {"checkpoint": checkpoint, "lora_alpha": lora_alpha}
            _import(out, dtype, arch, {**files, **heads, **trained})
    if as_json:
        print_summary({"output": out})
    else:
        typer.echo(out)
    if config is not None:
        show_next(["train", out], "tune the model as this configuration says")
    elif to_official is None and checkpoint is not None:
        show_next(["serve", out], "try the model in a browser")


def _check_out(out: Path, reads: list[Path | str | None], *, overwrite: bool) -> None:
    """Check that no input, and no folder without a model, is replaced.

    Raises:
        InputError: it would be.
    """
    from captune.data import check_output, check_output_folder

    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; give another --out, or --overwrite.")
    inputs = [path for path in reads if path is not None]
    if not out.is_dir():
        check_output(out, command="convert", reads=inputs, overwrite=overwrite)
        return
    check_output_folder(out, reads=inputs)
    if any(out.iterdir()) and not _is_captune_model(out):
        raise InputError(f"{out} is a folder without a model of captune, and is not replaced; give another --out.")


def _is_captune_model(folder: Path) -> bool:
    try:
        kind = load_json((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    return str(kind).startswith("captune")


def _import(out: Path, dtype: NumberFormat, arch: Arch, parts: dict[str, Any]) -> None:
    """Convert the original files to one model."""
    from captune.cli.progress import working
    from captune.preflight import extra_imports

    with working("Loading torch and transformers"), extra_imports("captune convert", "train"):
        import torch

        from captune.model import load_official
    torch_dtype: Any = "auto" if dtype is NumberFormat.AUTO else getattr(torch, dtype.value)
    _save(load_official(arch.value, dtype=torch_dtype, **parts), out)


def _build(out: Path, dtype: NumberFormat, parts: dict[str, Any]) -> None:
    """Connect the parts by a new projection, and print what it needs."""
    from captune.cli.progress import working
    from captune.preflight import extra_imports

    with working("Loading torch and transformers"), extra_imports("captune convert", "train"):
        import torch

        from captune.model import ALIGNMENT_CONFIG, build_model
    torch_dtype = None if dtype is NumberFormat.AUTO else getattr(torch, dtype.value)
    _save(build_model(dtype=torch_dtype, **parts), out)
    print_message(
        "The projection is new and random: align it on image-text pairs first (stage 1), with the settings of "
        f"{ALIGNMENT_CONFIG}."
    )


def _save(model: Any, out: Path) -> None:
    """Write the folder of a model atomically."""
    from captune.data import atomic_folder

    with atomic_folder(out) as folder:
        model.save_pretrained(folder, max_shard_size="4GB")


def export_official(source: Path, out: Path) -> None:
    """Write the trained weights as a .pth file atomically.

    Raises:
        WeightsError: it is no checkpoint or model of captune, or one of a transformers model.
    """
    from captune.cli.progress import working
    from captune.hub import kind_of_model, resolve_model
    from captune.preflight import extra_imports

    is_checkpoint = (source / RECORD).is_file()
    kind = read_record(source).kind if is_checkpoint else kind_of_model(resolve_model(str(source)))
    if kind == "transformers":
        raise WeightsError(
            f"{source} is of a transformers model, and the original code has MiniGPT-4 only; captune export without "
            "--original writes it for peft, transformers and vLLM."
        )
    with working("Loading torch and transformers"), extra_imports("captune convert", "train"):
        import torch

        from captune.data import atomic_file
        from captune.model import official_checkpoint
    content = official_checkpoint(source)
    with atomic_file(out, "wb") as stream:
        torch.save(content, stream)


def _translate(source: Path, out: Path, processes: int) -> None:
    """Write the original's configuration as captune's; keys without a counterpart are printed on stderr."""
    from captune.config import commented_yaml, convert_config
    from captune.data import atomic_file

    converted, notes = convert_config(source, processes=processes)
    with atomic_file(out, "w") as stream:
        stream.write(commented_yaml(converted, f"Converted from {source}.\n" + "\n".join(notes)))
    for note in notes:
        print_message(f"captune: {note}")
