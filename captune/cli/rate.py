"""`captune rate`: blind human rating of captions, from the study to its results."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.errors import InputError

if TYPE_CHECKING:
    from captune.apps.rating.store import Store

__all__ = ["rate", "register"]

FOLDER = "rating"
"""Where in a run its study lies."""

DESIGNS = ("pairwise", "rubric", "both")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("rate")(rate)


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
    systems: Annotated[
        str | None, typer.Option(help="Which to compare, with commas.", show_default="the first and the last")
    ] = None,
    human: Annotated[bool, typer.Option(help="Add one reference caption of each image as a control.")] = True,
    references: Annotated[
        Path | None, typer.Option(help="Reference captions, for result files.", show_default=False)
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Manifest or folder of the images.", show_default="the run's own")
    ] = None,
    design: Annotated[str | None, typer.Option(help="pairwise, rubric or both.", show_default="both")] = None,
    images: Annotated[int | None, typer.Option(help="Images sampled.", show_default="40")] = None,
    raters: Annotated[int | None, typer.Option(help="People with a link.", show_default="3")] = None,
    rater: Annotated[
        list[str] | None, typer.Option(help="Name of a rater; repeatable. Raters never see it.", show_default=False)
    ] = None,
    judgements: Annotated[
        int | None, typer.Option(help="People who judge each caption or pair.", show_default="3, or all raters")
    ] = None,
    pairs_per_image: Annotated[
        int | None, typer.Option(help="Comparisons of an image.", show_default="every pair of systems")
    ] = None,
    attention: Annotated[
        float | None, typer.Option(help="Attention checks, as a share of the tasks.", show_default="0.05")
    ] = None,
    repeats: Annotated[
        float | None, typer.Option(help="Repeated tasks, as a share of the tasks.", show_default="0.1")
    ] = None,
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Do not make capitals, spaces and full stops alike.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of all that is drawn.", min=0, show_default="42")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8765,
    url: Annotated[
        str | None, typer.Option(help="What links begin with, behind a proxy.", show_default="the address")
    ] = None,
    min_attention: Annotated[
        float, typer.Option(help="With --results: leave out raters who passed a smaller share of their checks.")
    ] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="With --results: also write results.json and answers.csv here.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results or links as one JSON object.")] = False,
) -> None:
    """Have people judge captions blindly: make a study, serve it to raters, and compute what they found.

    The first call makes the study and prints a personal link for each rater; the same call later goes on with it.
    """
    from captune.cli.extras import needs

    with needs("captune rate", "serve"):
        from captune.apps.http import answered_hosts, base_url
        from captune.apps.rating.store import DATABASE, Store
    given = {
        "design": design,
        "images": images,
        "judgements": judgements,
        "pairs_per_image": pairs_per_image,
        "attention": attention,
        "repeats": repeats,
        "seed": seed,
        "as_written": as_written or None,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if url is not None and not url.startswith(("http://", "https://")):
        raise InputError(f"--url is {url!r}, expected what links begin with, such as https://study.example.")
    if design is not None and design not in DESIGNS:
        raise InputError(f"--design is {design!r}, expected one of: {', '.join(DESIGNS)}.")
    is_study = len(sources) == 1 and (sources[0] / DATABASE).is_file()
    folder = sources[0] if is_study else study or _study_of(sources)
    if (folder / DATABASE).is_file():
        store = Store(folder)
    elif results or links:
        raise InputError(f"{folder} holds no study yet; make one first with captune rate {sources[0]}.")
    else:
        wanted = [name.strip() for name in systems.split(",")] if systems else None
        store = _make(folder, sources, references, pictures, wanted, human, chosen, raters, rater or [])
    with closing(store):
        from captune.apps.rating.create import rated_rows

        for run in (source for source in sources if not is_study and (source / "scores.json").is_file()):
            rated_rows(store, run)
        _go_on(store, chosen, systems, raters, rater or [])
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


def _make(
    folder: Path,
    sources: list[Path],
    references: Path | None,
    pictures: Path | None,
    systems: list[str] | None,
    human: bool,
    chosen: dict[str, Any],
    raters: int | None,
    names: list[str],
) -> Store:
    """Draw a new study."""
    from captune.apps.rating.create import create_study
    from captune.apps.rating.study_design import StudyOptions
    from captune.apps.rating.study_items import choose_systems, read_study_items, with_human

    people = raters if raters is not None else len(names) or 3
    options = StudyOptions(**{"judgements": min(3, people), **chosen, "raters": people})
    items = choose_systems(read_study_items(sources, references=references, pictures=pictures), systems)
    for sentence in items.left_out():
        _say(f"captune: warning: {sentence}")
    if human:
        items = with_human(items, options.seed)
    store = create_study(folder, items, options, names)
    screens = [len(store.trials(rater.number)) for rater in store.raters()]
    _say(
        f"Made a study in {folder}: {', '.join(store.setting('systems'))}; {len(store.images())} images, "
        f"{len(screens)} raters with {min(screens)} to {max(screens)} screens each."
    )
    return store


def _go_on(store: Store, chosen: dict[str, Any], systems: str | None, raters: int | None, names: list[str]) -> None:
    """Use the study that is there; what was given must be what it was made with, but for more raters."""
    from dataclasses import asdict

    from captune.apps.rating.create import add_raters

    options = asdict(store.options)
    if other := next((name for name, value in chosen.items() if options[name] != value), None):
        raise InputError(
            f"The study in {store.folder} was made with {other} {options[other]}, and it cannot be changed now; leave "
            "the option out, or make another study with --study."
        )
    there = store.setting("systems")
    if systems is not None and [s.strip() for s in systems.split(",")] != [s for s in there if s != "human"]:
        raise InputError(f"The study in {store.folder} compares {', '.join(there)}; make another one with --study.")
    known = {rater.name for rater in store.raters()}
    new = [name for name in names if name not in known]
    total = raters if raters is not None else len(known) + len(new)
    if total != len(known) or new:
        add_raters(store, total, new)
        _say(f"The study has {len(store.raters())} raters now.")


def _serve(store: Store, host: str, port: int, url: str | None, *, as_json: bool) -> None:
    """Serve the study until Ctrl-C."""
    from captune.data.locks import folder_lock

    with folder_lock(store.folder, "captune rate"):
        _listen(store, host, port, url, as_json=as_json)


def _listen(store: Store, host: str, port: int, url: str | None, *, as_json: bool) -> None:
    """Serve a study that no other process serves."""
    from captune.apps.http import answered_hosts, base_url, is_local, listening_socket, run_server
    from captune.apps.rating.server import rating_application

    hosts = answered_hosts(host, url)
    listener = listening_socket(host, port)
    base = (url or base_url(host, listener.getsockname()[1])).rstrip("/")
    local_only = is_local(host) and url is None
    if not local_only:
        _say(
            f"Listening on {host}: whoever reaches this machine can open the pages. Links and the results key are "
            "sent unencrypted unless a proxy with HTTPS stands in front."
        )
    else:
        _say("Listening on this machine only; --host 0.0.0.0 lets raters on other machines in.")
    _print_links(store, base, as_json=as_json)
    _say(f"Results: {base}/results?key={store.results_key}\nStop with Ctrl-C; every answer is saved at once.")
    try:
        run_server(rating_application(store, hosts=hosts, site=url), listener)
    except KeyboardInterrupt:
        _say("Stopped. The same command goes on with the study.")


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
    """Print the results and put them into the run they belong to."""
    from captune.apps.rating.create import rated_rows
    from captune.apps.rating.export import check_results, results_json, write_results
    from captune.apps.rating.study_report import compute_results
    from captune.cli.rating_output import print_results
    from captune.data.locks import folder_lock
    from captune.report.rating import captions_hashes

    if out is not None:
        check_results(out)
    found = compute_results(store, least)
    if as_json:
        print(results_json(found), end="")
    else:
        print_results(found)
    files = write_results(out, store, found) if out is not None else []
    run = sources[0] if (sources[0] / "scores.json").is_file() else store.folder.parent
    if (run / "scores.json").is_file():
        try:
            rows = rated_rows(store, run)
        except InputError as error:
            # The results of the study alone were requested, and are printed.
            _say(f"Nothing was written into {run}: {error}")
            rows = []
        if rows:
            with folder_lock(run, "captune rate"):
                files += _write_into_run(run, found.to_dict() | {"captions": captions_hashes(rows)})
    for file in files:
        _say(str(file))


def _write_into_run(run: Path, results: dict[str, Any]) -> list[Path]:
    """Write the results into the run, and its page anew."""
    import json

    from captune.data.atomic import atomic_file
    from captune.report import write_page

    with atomic_file(run / "rating.json") as stream:
        stream.write(json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n")
    return [run / "rating.json", write_page(run)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
