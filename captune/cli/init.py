"""`captune init`: from a folder of images, or a table, to a manifest with splits and a configuration of a few lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli.guessed_columns import is_interactive
from captune.cli.init_model import Machine, ModelChoice, choose_model, fit_memory, named_model
from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary

if TYPE_CHECKING:
    from captune.cli.init_data import WrittenData

__all__ = ["init"]

_FEW_EVALUATED = 50
_HEADING = """\
# Written by captune init: {images:,} images of {source}.
# Every other key has its default; docs/configuration.md lists all, and `captune train FILE key=value` overrides one.
"""


def init(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER|FILE]",
            help="Images with captions, a table, COCO's JSON or a manifest; by default the working directory.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A template of --list, toy, toy-vlm, a hub id or a folder.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The YAML file to write, or a folder for it; - prints a template.",
            show_default="NAME.yaml",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Shares of the splits; by default the splits of the data, or train=0.9,test=0.1."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the splits and of the run.", show_default=False)
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column of the image in a table.", show_default="guessed")
    ] = None,
    caption_column: Annotated[
        list[str] | None, typer.Option(help="Column of captions in a table; repeatable.", show_default="guessed")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column of the split in a table.", show_default="guessed")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the image files.", show_default="searched")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of a table, such as cp1252 or gb18030.", show_default="detected")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help="Memory of the GPU that will train, such as 24GB.", show_default="this machine's"),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Write this template of --list; with data the same as --model.", show_default=False),
    ] = None,
    list_templates: Annotated[bool, typer.Option("--list", help="List the templates, and write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept all proposals without questions.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that captune init did not write.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as one JSON object.")] = False,
) -> None:
    """Write a manifest with splits and a short configuration for your images, and print the next command.

    Captions may be a .txt next to each image, a table (CSV, TSV, JSON, parquet), COCO's or Karpathy's JSON, or a
    manifest. On a terminal captune asks at most three questions: how the captions are read, which model, and which file
    to write.

    Examples:
        captune init photos
        captune init photos/captions.csv --model qwen3_vl_2b --gpu 24GB --yes
        captune init --template qwen3_vl_2b --out photos.yaml
    """
    from captune.cli.init_data import find_data, parse_required_shares, write_data
    from captune.config import parse_config
    from captune.data import data_name
    from captune.errors import ConfigError

    if list_templates:
        _list_templates(as_json)
        return
    if out == Path("-") and (template is None or source is not None or as_json):
        raise ConfigError("--out - prints a template, without data and --json; give the name of a YAML file.")
    if template is not None and source is None:
        _write_template(template, out, overwrite, as_json)
        return
    ask = is_interactive() and not yes and not as_json
    source = source or Path()
    shares = None if split is None else parse_required_shares(split, seed or 0)
    machine = Machine.detect(gpu)
    choice = None if model is None and template is None else named_model(str(model or template))
    options = {"--model": model, "--template": template, "--out": out, "--split": split, "--seed": seed}
    options |= {"--images": images, "--gpu": gpu}
    data = find_data(
        source,
        image=image_column,
        captions=caption_column or [],
        split_column=split_column,
        folder=images,
        encoding=encoding,
        options=[str(word) for option in options.items() if option[1] is not None for word in option],
        yes=yes,
    )
    print_message(f"machine   {machine.in_words()}")
    choice = choice or choose_model(machine, ask=ask)
    name = _name_of(source)
    path = _configuration_path(out, name, ask=ask)
    manifest = path.with_suffix(".jsonl")
    if manifest.exists() and os.path.samefile(manifest, data.source.path):
        manifest = path.with_name(f"{path.stem}-split.jsonl")
    _check_outputs(path, manifest, data.source.path, overwrite=overwrite)
    written = write_data(data, manifest, shares, seed=seed or 0, overwrite=overwrite)
    settings = _settings(choice, written, path.stem, data_name(source), seed)
    fits, fit = fit_memory(settings, choice, machine)
    parse_config(settings)
    _write_yaml(path, settings, written, source)
    _report(path, settings, written, choice, fits, fit, as_json=as_json)


def _list_templates(as_json: bool) -> None:
    from captune.cli.plan import size_in_words
    from captune.common import text_table
    from captune.config import read_templates

    templates = read_templates()
    if as_json:
        answer = [
            {"name": name, "model": item.model, "title": item.title, "memory": item.memory, "license": item.license}
            for name, item in templates.items()
        ]
        print_summary({"templates": answer})
        return
    rows = [
        [name, item.model, "" if item.memory is None else size_in_words(item.memory), item.license or ""]
        for name, item in templates.items()
    ]
    print(text_table(["template", "model", "GPU memory", "license"], rows, numbers=False))
    show_next(["init", "--template", "qwen3_vl_2b"], "write one")


def _write_template(name: str, out: Path | None, overwrite: bool, as_json: bool) -> None:
    from captune.config import find_template
    from captune.data import check_output, output_file

    template = find_template(name.replace("-", "_"))
    if out == Path("-"):
        print(template.text_for(Path(f"{template.name}.yaml")), end="")
        return
    path = _configuration_path(out, template.name, ask=False)
    check_output(path, command="init", overwrite=overwrite)
    with output_file(path, command="init") as stream:
        stream.write(template.text_for(path))
    if as_json:
        print_summary({"configuration": path, "model": template.model})
        return
    print_message(f"{path}: {template.title}.")
    print_message("Set data.train to your manifest in it; captune init FOLDER writes both.")
    show_next(["train", path])


def _name_of(source: Path) -> str:
    """The name of the run: that of the folder or file."""
    real = Path(os.path.abspath(source))
    name = real.name if real.is_dir() else real.name.split(".")[0]
    return name or "captune"


def _configuration_path(out: Path | None, name: str, *, ask: bool) -> Path:
    if out is not None:
        return out if out.suffix.lower() in (".yaml", ".yml") else out / f"{name}.yaml"
    path = Path(f"{name}.yaml")
    if not ask:
        return path
    answer = Path(typer.prompt("Which file to write?", default=str(path), err=True).strip())
    return answer if answer.suffix.lower() in (".yaml", ".yml") else answer.with_name(f"{answer.name}.yaml")


def _check_outputs(path: Path, manifest: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse outputs that would replace files of the user, before anything is written."""
    from captune.data import check_output

    reads = [source] if source.is_file() else []
    for output in (path, manifest):
        check_output(output, command="init", reads=reads, overwrite=overwrite)


def _settings(choice: ModelChoice, written: WrittenData, name: str, data_name: str, seed: int | None) -> dict[str, Any]:
    """The configuration: keys that differ from the defaults, in the order in which a person reads them."""
    from captune.config import model_schedule

    data: dict[str, Any] = {"train": written.manifest.as_posix()}
    if data_name != written.manifest.resolve().parent.name:
        data["name"] = data_name
    if written.train_split != "train":
        data["train_split"] = written.train_split
    if written.evaluate_split != "test":
        data["evaluate_split"] = written.evaluate_split
    settings: dict[str, Any] = {"output": _free_output(name)}
    if seed is not None:
        settings["seed"] = seed
    settings["model"] = {"path": choice.name, **choice.settings.get("model", {})}
    settings["data"] = data
    usual = choice.settings.get("train", {})
    settings["train"] = model_schedule(choice.name, usual, written.captions[written.train_split])
    if "evaluate" in choice.settings:
        settings["evaluate"] = dict(choice.settings["evaluate"])
    if written.tokenizer is not None:
        settings["evaluate"] = {**settings.get("evaluate", {}), "tokenizer": written.tokenizer}
    return settings


def _free_output(name: str) -> str:
    """An output folder that holds no run yet."""
    number = 1
    while os.path.lexists(output := f"runs/{name}" if number == 1 else f"runs/{name}-{number}"):
        number += 1
    return output


def _write_yaml(path: Path, settings: dict[str, Any], written: WrittenData, source: Path) -> None:
    import yaml

    from captune.data import output_file, printable

    heading = _HEADING.format(images=written.images.total(), source=printable(str(source)))
    with output_file(path, command="init") as stream:
        stream.write(heading + "\n")
        yaml.safe_dump(settings, stream, sort_keys=False, allow_unicode=True)


def _report(
    path: Path,
    settings: dict[str, Any],
    written: WrittenData,
    choice: ModelChoice,
    fits: bool,
    fit: str,
    *,
    as_json: bool,
) -> None:
    """Print what was written, and the next command."""
    if as_json:
        print_summary(
            {
                "configuration": path,
                "manifest": written.manifest,
                "model": choice.name,
                "output": settings["output"],
                "images": dict(written.images),
                "captions": dict(written.captions),
                "left_out": written.left_out,
                "fits": fits,
                "fit": fit,
                "next": ["captune", "train", str(path)] if fits else ["captune", "init", "--list"],
            }
        )
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    print_message(f"\n{path}")
    print_message("\n".join(f"    {line}" for line in lines if line and not line.startswith("#")))
    print_message(f"\n{fit}")
    if choice.license is not None:
        print_message(f"License of {choice.name}: {choice.license}.")
    evaluated = written.images[written.evaluate_split]
    if evaluated < _FEW_EVALUATED:
        print_message(
            f"Scores of {evaluated} evaluated images have wide intervals; {_FEW_EVALUATED} or more are better."
        )
    if fits:
        show_next(["train", path])
    else:
        show_next(["init", "--list"], "see other models")
