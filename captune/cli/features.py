"""`captune features`: encode a run's images before training, or on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_summary
from captune.cli.output import settings as output_settings
from captune.cli.shared_options import AsJson, Overrides

__all__ = ["features"]


def features(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as captune init writes.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Encode a run's images with the frozen towers and store the features, for training and evaluation.

    Stored features are reused; unreadable images are reported with exit code 2. Runs in one process or under torchrun.

    Examples:
        captune features photos.yaml
        captune features photos.yaml data.train=more.jsonl
        torchrun --nproc-per-node 4 -m captune features photos.yaml
    """
    from captune.cli.progress import show_progress, working
    from captune.config import load_config
    from captune.preflight import check_run, extra_imports, require_extra

    settings = load_config(config, overrides or [])
    require_extra("captune features", "train")
    check_run(settings, trains=True)
    with working("Loading torch and transformers"), extra_imports("captune features", "train"):
        from captune.data import plural
        from captune.errors import DataError
        from captune.training import store_features
    output_settings.resumes = True
    with show_progress() as listener:
        stage = store_features(settings, listener)
    if as_json:
        print_summary({"features": stage.folder, "unreadable": list(stage.broken)})
    else:
        typer.echo(stage.folder)
    if stage.broken:
        raise DataError(f"{plural(len(stage.broken), 'image')} cannot be read: {' '.join(stage.broken[:3])}")
    show_next(["train", config, *(overrides or [])], "train on the stored features")
