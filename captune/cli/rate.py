"""`captune rate`: blind human rating of captions, from the study to its results."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from captune.cli.output import print_message
from captune.cli.shared_options import with_shared_options
from captune.common import one_line, text_table
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.apps.rating import Results, Store

__all__ = ["rate"]

FOLDER = "rating"
"""Name of a study's folder in a run."""

DESIGNS = ("pairwise", "rubric", "both")


@dataclass(frozen=True)
class _StudyOptions:
    """Fields of `captune.apps.rating.StudyOptions`; None and False are not set."""

    PANEL: ClassVar[str] = "Design of a new study"

    design: Annotated[str | None, typer.Option(help="pairwise, rubric or both.", show_default="both")] = None
    images: Annotated[int | None, typer.Option(help="Images sampled.", show_default="40")] = None
    judgements: Annotated[
        int | None, typer.Option(help="People who judge each caption or pair.", show_default="3, or all raters")
    ] = None
    pairs_per_image: Annotated[
        int | None, typer.Option(help="Comparisons of an image.", show_default="every pair of systems")
    ] = None
    attention: Annotated[
        float | None, typer.Option(help="Attention checks, as a share of the tasks.", show_default="0.05")
    ] = None
    repeats: Annotated[
        float | None, typer.Option(help="Repeated tasks, as a share of the tasks.", show_default="0.1")
    ] = None
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Do not normalize capitals, spaces and full stops.")
    ] = False
    seed: Annotated[int | None, typer.Option(help="Seed of all random choices.", min=0, show_default="42")] = None

    def that_are_set(self) -> dict[str, Any]:
        """The options that are set.

        Raises:
            InputError: there is no such design.
        """
        if self.design is not None and self.design not in DESIGNS:
            raise InputError(f"--design is {self.design!r}, expected one of: {', '.join(DESIGNS)}.")
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


@dataclass(frozen=True)
class _Material:
    """What a new study compares, and its raters."""

    PANEL: ClassVar[str] = "Systems and raters of a new study"

    systems: Annotated[
        str | None, typer.Option(help="Systems to compare, comma-separated.", show_default="the first and the last")
    ] = None
    human: Annotated[bool, typer.Option(help="Add one reference caption of each image as a control.")] = True
    references: Annotated[
        Path | None, typer.Option(help="Reference captions, for result files.", show_default=False)
    ] = None
    pictures: Annotated[
        Path | None, typer.Option(help="Manifest or folder of the images.", show_default="those of the run")
    ] = None
    raters: Annotated[int | None, typer.Option(help="People with a link.", show_default="3")] = None
    rater: Annotated[
        list[str] | None, typer.Option(help="Name of a rater; repeatable. Raters never see it.", show_default=False)
    ] = None

    @property
    def system_names(self) -> list[str] | None:
        """The systems to compare; None is the default."""
        return None if not self.systems else [name.strip() for name in self.systems.split(",")]


@with_shared_options
def rate(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR|RESULTS.json...",
            help="A run directory with scores.json, result files of systems to compare, or the folder of a study.",
            show_default=False,
        ),
    ],
    study: Annotated[
        Path | None, typer.Option(help="Folder of the study.", show_default="rating in the run directory")
    ] = None,
    results: Annotated[
        bool, typer.Option("--results", help="Print the results so far, write them into the run's report, and stop.")
    ] = False,
    links: Annotated[bool, typer.Option("--links", help="Print the raters' links and stop.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8765,
    url: Annotated[
        str | None, typer.Option(help="Beginning of the links behind a proxy.", show_default="the address")
    ] = None,
    min_attention: Annotated[
        float, typer.Option(help="With --results: leave out raters who passed a smaller share of their checks.")
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="With --results: also write results.json and answers.csv here.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results or links as one JSON object.")] = False,
    *,
    material: _Material,
    study_options: _StudyOptions,
) -> None:
    """Have people judge captions blindly: make a study, serve it to raters, and compute the results.

    The first call makes the study and prints a personal link for each rater; the same call later resumes it.

    Examples:
        captune rate runs/photos
        captune rate runs/photos --images 20 --raters 2
        captune rate runs/photos --results
    """
    from captune.preflight import extra_imports

    with extra_imports("captune rate", "serve"):
        from captune.apps import answered_hosts, base_url
        from captune.apps.rating import DATABASE, Store
    options = study_options.that_are_set()
    if url is not None and not url.startswith(("http://", "https://")):
        raise InputError(f"--url is {url!r}, expected the beginning of the links, such as https://study.example.")
    is_study = len(sources) == 1 and (sources[0] / DATABASE).is_file()
    folder = sources[0] if is_study else study or _study_of(sources)
    if (folder / DATABASE).is_file():
        store = Store(folder)
    elif results or links:
        raise InputError(f"{folder} holds no study yet; create one first with captune rate {sources[0]}.")
    else:
        store = _make(folder, sources, material, options)
    with closing(store):
        from captune.apps.rating import rated_rows

        for run in (source for source in sources if not is_study and (source / "scores.json").is_file()):
            rated_rows(store, run)
        _resume(store, material, options)
        if results:
            _show_results(store, sources, min_attention, out, as_json=as_json)
        elif links:
            answered_hosts(host, url)
            _print_links(store, (url or base_url(host, port)).rstrip("/"), as_json=as_json)
        else:
            _serve(store, host, port, url, as_json=as_json)


def _study_of(sources: list[Path]) -> Path:
    if sources[0].is_dir():
        return sources[0] / FOLDER
    return sources[0].parent / FOLDER


def _make(folder: Path, sources: list[Path], material: _Material, options: dict[str, Any]) -> Store:
    """Draw a new study."""
    from captune.apps.rating import StudyOptions, choose_systems, create_study, read_study_items, with_human

    names = material.rater or []
    people = material.raters if material.raters is not None else len(names) or 3
    study_options = StudyOptions(**{"judgements": min(3, people), **options, "raters": people})
    items = read_study_items(sources, references=material.references, pictures=material.pictures)
    items = choose_systems(items, material.system_names)
    for sentence in items.left_out():
        print_message(f"captune: warning: {sentence}")
    if material.human:
        items = with_human(items, study_options.seed)
    store = create_study(folder, items, study_options, names)
    screens = [len(store.trials(rater.number)) for rater in store.raters()]
    least, most = min(screens), max(screens)
    minutes = math.ceil(most * _SECONDS_A_SCREEN / 60)
    print_message(
        f"Made a study in {folder}: {', '.join(store.setting('systems'))}; {len(store.images())} images, "
        f"{len(screens)} raters with {least if least == most else f'{least} to {most}'} screens each."
    )
    print_message(
        "An invitation to send with a link: Please look at images and their captions in your browser. It takes "
        f"about {minutes} minutes for {most} screens; you can stop at any time and continue with the same link."
    )
    return store


def _resume(store: Store, material: _Material, options: dict[str, Any]) -> None:
    """Resume a study; the options must be those of its creation, except for more raters."""
    from captune.apps.rating import add_raters

    stored = asdict(store.options)
    if changed := next((name for name, value in options.items() if stored[name] != value), None):
        raise InputError(
            f"The study in {store.folder} was made with {changed} {stored[changed]}, which cannot be changed now; "
            "leave the option out, or make another study with --study."
        )
    compared = store.setting("systems")
    if material.systems is not None and material.system_names != [name for name in compared if name != "human"]:
        raise InputError(f"The study in {store.folder} compares {', '.join(compared)}; make another one with --study.")
    known = {rater.name for rater in store.raters()}
    new = [name for name in material.rater or [] if name not in known]
    total = material.raters if material.raters is not None else len(known) + len(new)
    if total != len(known) or new:
        add_raters(store, total, new)
        print_message(f"The study has {len(store.raters())} raters now.")


def _serve(store: Store, host: str, port: int, url: str | None, *, as_json: bool) -> None:
    """Serve the study until Ctrl-C."""
    from captune.data import folder_lock

    with folder_lock(store.folder, "captune rate"):
        _listen(store, host, port, url, as_json=as_json)


def _listen(store: Store, host: str, port: int, url: str | None, *, as_json: bool) -> None:
    """Serve a locked study."""
    from captune.apps import answered_hosts, base_url, is_local, listening_socket, run_server
    from captune.apps.rating import rating_application

    hosts = answered_hosts(host, url)
    listener = listening_socket(host, port)
    base = (url or base_url(host, listener.getsockname()[1])).rstrip("/")
    local_only = is_local(host) and url is None
    if not local_only:
        print_message(
            f"Listening on {host}: whoever reaches this machine can open the pages. Links and the results key are "
            "sent unencrypted unless a proxy adds HTTPS."
        )
    else:
        print_message("Listening on this machine only; --host 0.0.0.0 accepts raters on other machines.")
    _print_links(store, base, as_json=as_json)
    print_message(f"Results: {base}/results?key={store.results_key}\nStop with Ctrl-C; every answer is saved at once.")
    try:
        run_server(rating_application(store, hosts=hosts, site=url), listener)
    except KeyboardInterrupt:
        print_message("Stopped. The same command resumes the study.")


def _print_links(store: Store, base: str, *, as_json: bool) -> None:
    links = {rater.name: f"{base}/r/{store.token(rater.number)}/" for rater in store.raters()}
    if as_json:
        import json

        print(json.dumps({"links": links, "results": f"{base}/results?key={store.results_key}"}, ensure_ascii=False))
    else:
        width = max(map(len, links))
        for name, link in links.items():
            print(f"{name:<{width}}  {link}")
    sys.stdout.flush()


def _show_results(store: Store, sources: list[Path], least: float, out: Path | None, *, as_json: bool) -> None:
    """Print the results and write them into their run."""
    from captune.apps.rating import check_results, compute_results, rated_rows, results_json, write_results
    from captune.data import folder_lock
    from captune.report import caption_hashes

    if out is not None:
        check_results(out)
    computed = compute_results(store, least)
    if as_json:
        print(results_json(computed), end="")
    else:
        _print_results(computed)
    files = write_results(out, store, computed) if out is not None else []
    run = sources[0] if (sources[0] / "scores.json").is_file() else store.folder.parent
    if (run / "scores.json").is_file():
        try:
            rows = rated_rows(store, run)
        except InputError as error:
            # The results of the study alone were requested, and are printed.
            print_message(f"Nothing was written into {run}: {error}")
            rows = []
        if rows:
            with folder_lock(run, "captune rate"):
                files += _write_into_run(run, computed.to_dict() | {"captions": caption_hashes(rows)})
    for file in files:
        print_message(str(file))


def _write_into_run(run: Path, results: dict[str, Any]) -> list[Path]:
    """Write the results into the run, and write its page again."""
    import json

    from captune.data import atomic_file
    from captune.report import write_page

    with atomic_file(run / "rating.json") as stream:
        stream.write(json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n")
    return [run / "rating.json", write_page(run)]


_SECONDS_A_SCREEN = 15  # an estimate; a comparison takes less, four points for a caption more
_CRITERIA = {"precision": "right", "recall": "complete", "fluency": "well written", "conciseness": "concise"}
"""The criteria as the raters' pages call them."""

DOUBTS = {"too_fast": "answered too fast to have read the captions", "attention_failed": "failed attention checks"}
"""What is printed of raters whose answers should be looked at."""


def _print_results(results: Results) -> None:
    """Print every table of the results to stdout."""
    print(f"{results.counted:,} answers on {results.images:,} images; intervals are 95 %, over images.")
    if results.left_out:
        print(f"Left out for their attention checks: {', '.join(map(one_line, results.left_out))}.")
    for better, worse, share in results.verdicts:
        explained = ""
        if share.low is not None and share.high is not None:
            beyond = share.low > 0.5 or share.high < 0.5
            explained = ", more than chance explains" if beyond else ", which chance can explain"
        print(f"{one_line(better)} against {one_line(worse)}: preferred in {share} of their comparisons{explained}.")
    _print_raters(results)
    _print_ranking(results)
    criteria = list(next(iter(results.rubric.values()), {}))
    _section(
        "Points, 1 to 5",
        ("system", *map(_criterion, criteria)),
        [(one_line(name), *map(str, means.values())) for name, means in results.rubric.items()],
    )
    for level in ("caption", "system"):
        _section(
            f"Correlation of metrics with people, {level} level",
            ("metric", "people", "tau-c", "Pearson r", "n"),
            [
                (one_line(row.metric), row.target, str(row.kendall), str(row.pearson), str(row.pairs))
                for row in results.correlations_at(level, single_criteria=False)
            ],
        )
    if results.correlations:
        print(
            "\nIntervals at system level cover the people's judgements only: other systems may behave differently.\n"
            "The single criteria are in --json."
        )


def _print_raters(results: Results) -> None:
    """Print how careful each rater was, and how much they agree."""
    _section(
        "Raters",
        ("rater", "answered", "attention", "same choice", "mean difference", "ties", "first chosen", "seconds"),
        [
            (
                one_line(rater.name),
                f"{rater.answered}/{rater.screens}",
                f"{rater.attention_passed}/{rater.attention_checks}",
                f"{rater.same_choice}/{rater.repeated_pairs}",
                _number(rater.points_apart),
                _share(rater.ties),
                _share(rater.first_chosen),
                _number(rater.seconds, 1),
            )
            for rater in results.raters
        ],
    )
    for rater in results.raters:
        if rater.doubts:
            reasons = " and ".join(DOUBTS[doubt] for doubt in rater.doubts)
            print(f"{one_line(rater.name)} {reasons}; --min-attention leaves out raters who failed checks.")
    _section(
        "Agreement (Krippendorff's alpha)",
        ("question", "alpha", "judged by two or more"),
        [(_criterion(name), str(alpha), str(units)) for name, (alpha, units) in results.agreement.items()],
    )


def _print_ranking(results: Results) -> None:
    """Print the systems by preference, and each pair of them."""
    strengths = {ranked.system: (ranked.rank, ranked.strength) for ranked in results.ranking}
    ordered = sorted(results.win_rates, key=lambda name: strengths[name][0] if name in strengths else 0)
    _section(
        "Ranking",
        ("system", "preferred", "strength (Bradley-Terry)"),
        [
            (one_line(name), str(results.win_rates[name]), str(strengths[name][1]) if name in strengths else "–")
            for name in ordered
        ],
    )
    _section(
        "Pairs",
        ("first : second", "first better", "equal", "second better", "first preferred", "same text"),
        [
            (
                " : ".join(map(one_line, pair.systems)),
                str(pair.wins),
                str(pair.ties),
                str(pair.losses),
                str(pair.share),
                str(pair.equal),
            )
            for pair in results.pairs
        ],
    )


def _criterion(name: str) -> str:
    """A criterion as the raters' pages call it, with its name in results.json."""
    return f"{_CRITERIA[name]} ({name})" if name in _CRITERIA else name


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        print(f"\n{title}\n{text_table(header, rows)}")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
