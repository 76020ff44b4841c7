"""`captune demo`: all steps from data to report on drawn scenes, as on real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.cli.shared_options import AsJson

if TYPE_CHECKING:
    from captune.config import RunConfig
    from captune.report import RunScores

__all__ = ["demo", "demo_config"]

SHOWN = 3
"""Images whose captions are printed at the end."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data and run; existing data is reused.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the drawn scenes and the training.", min=0)] = 42,
    model: Annotated[
        Literal["toy", "toy-vlm"],
        typer.Option(help="toy is a tiny MiniGPT-4; toy-vlm a tiny transformers model, tuned by LoRA."),
    ] = "toy",
    as_json: AsJson = False,
) -> None:
    """Draw scenes, prepare, train, evaluate and report: everything captune does, in minutes, with no download.

    Examples:
        captune demo
        captune demo --out runs/demo --seed 1
        captune demo --model toy-vlm
    """
    from captune.cli.prepare import import_flickr30k
    from captune.cli.prepare_common import Output
    from captune.cli.progress import show_progress, working
    from captune.cli.report_output import print_report, run_as_json
    from captune.preflight import extra_imports
    from captune.report import analyse, read_scores

    with working("Loading torch and transformers"), extra_imports("captune demo", "train"):
        from captune.toy import write_flickr30k
        from captune.training import train
    out.mkdir(parents=True, exist_ok=True)
    data = out / "flickr30k"
    _headline("1. Data: drawn scenes laid out as Flickr30k")
    written = write_flickr30k(data, seed=seed)
    counts = ", ".join(f"{split} {count:,}" for split, count in written.counts.items())
    print_message(f"{'Reusing' if written.reused else 'Drew'} the scenes in {data}: {counts}.")

    manifest = data / "manifest.jsonl"
    _headline("2. captune prepare flickr30k")
    if written.reused and manifest.is_file():
        print_message(f"Reusing the manifest {manifest}.")
    else:
        import_flickr30k(written.annotations, Output(manifest), written.images, show_next_command=False)

    config = demo_config(out / ("run" if model == "toy" else f"run-{model}"), manifest, seed, model)
    _headline("3. captune train: the pretrained model is evaluated first, then every epoch")
    with show_progress() as listener:
        train(config, listener, overwrite=True)

    scores = read_scores(config.output)
    _headline("4. Results")
    if as_json:
        print_summary({"output": config.output, "manifest": manifest, **run_as_json(scores, analyse(scores))})
        return
    print_report(scores, analyse(scores))
    _print_captions(scores)
    _print_hallucination(scores, out, seed, written.counts)
    _print_files(config)
    show_next(["serve", config.output], "try the model in a browser")


def demo_config(output: Path, manifest: Path, seed: int, model: str = "toy") -> RunConfig:
    """The run of the demo: the settings of train_configs/toy.yaml or toy_vlm.yaml on the data of the demo."""
    from captune.config import parse_config
    from captune.toy import TOY_SETTINGS, TOY_VLM_SETTINGS

    paths = {"output": str(output), "seed": seed, "data": {"train": str(manifest)}}
    return parse_config(
        {**(TOY_SETTINGS if model == "toy" else TOY_VLM_SETTINGS), **paths}, source="the demo's configuration"
    )


def _print_captions(scores: RunScores) -> None:
    """Print captions of some images: a reference, the first and the last checkpoint."""
    first, last = scores.checkpoints[0], scores.checkpoints[-1]
    print("\nSome captions")
    for image in list(last.captions)[:SHOWN]:
        print(f"  {image}")
        print(f"    {'reference':<11} {scores.references[image][0]}")
        for row in (first, last):
            print(f"    {row.name:<11} {row.captions[image]}")


def _print_hallucination(scores: RunScores, out: Path, seed: int, counts: dict[str, int]) -> None:
    """Print CHAIR of the first and the last checkpoint; what was drawn is known, so the rates are exact."""
    from captune.metrics import score_captions
    from captune.toy import plan_rows, write_objects

    objects, vocabulary = write_objects(out, plan_rows(**counts, seed=seed))
    print("\nHallucinated objects, against what is drawn")
    for row in (scores.checkpoints[0], scores.checkpoints[-1]):
        result = score_captions(
            row.captions, scores.references, ["chair"], subset=True,
            vocabulary=vocabulary, objects=objects, truth="objects",
        )  # fmt: skip
        print(f"  {row.name:<11} {result.format()}")
    print(f"  Score captions with --metrics chair --truth objects --objects {objects} --vocabulary {vocabulary}")


def _print_files(config: RunConfig) -> None:
    descriptions = {
        "table": "table.md, table.csv, table.tex",
        "chart": "metrics.png, metrics.svg",
        "page": "report.html, every image with every caption",
        "analysis": "analysis.md",
        "captions": "captions/",
        "checkpoints": "checkpoints/",
        "log": "log.jsonl",
    }
    print(f"\nFiles in {config.output}")
    for name, files in descriptions.items():
        print(f"  {name:<12} {files}")


def _headline(text: str) -> None:
    print_message(f"\n== {text}")
