"""`captune rate`: links and results on stdout, messages on stderr, one sentence for what is wrong."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captune.cli import app, run
from captune.report import CheckpointScores, RunScores, write_scores


def _call(*arguments: object) -> int:
    return run(lambda: app([str(argument) for argument in arguments], standalone_mode=False))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder, chance = tmp_path / "run", random.Random(1)
    (folder / "pictures").mkdir(parents=True)
    words = "red blue green dog cat tree house runs sleeps here".split()  # noqa: SIM905
    references = {f"i{n}": (" ".join(chance.sample(words, 5)), " ".join(chance.sample(words, 5))) for n in range(8)}
    for image in references:
        Image.new("RGB", (40, 30), "red").save(folder / "pictures" / f"{image}.png")
    rows = [
        CheckpointScores(
            name=name,
            corpus={"CIDEr": 0.1 * number},
            per_image={image: {"CIDEr": chance.random()} for image in references},
            captions={image: " ".join(chance.sample(words, 4)) for image in references},
        )
        for number, name in enumerate(("pretrained", "epoch0", "epoch1"))
    ]
    write_scores(RunScores("toy", tuple(rows), "test", "karpathy", 8, references), folder)
    return folder


@pytest.fixture
def made(run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run with a study, made by the command; the server returns at once."""
    monkeypatch.setattr("captune.apps.run_server", lambda application, listener: listener.close())
    pictures = run_dir / "pictures"
    assert _call("rate", run_dir, "--pictures", pictures, "--images", 4, "--port", 0, "--rater", "Ada") == 0
    capsys.readouterr()
    return run_dir


def _answer_everything(study: Path) -> None:
    from captune.apps.rating import Store

    store, chance = Store(study), random.Random(0)
    for rater in store.raters():
        for position, trial in enumerate(store.trials(rater.number)):
            choices = ("first", "second", "tie") if trial.part == "pairwise" else ("1234", "5432", "3333")
            store.save_answer(rater.number, position, chance.choice(choices), 1.0)
    store.close()


def test_links_go_to_stdout_and_the_key_to_stderr(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Any] = []

    def serve(application: Any, listener: Any) -> None:
        served.append(listener.getsockname())
        listener.close()

    monkeypatch.setattr("captune.apps.run_server", serve)
    command = ("rate", run_dir, "--pictures", run_dir / "pictures", "--images", 4, "--port", 0, "--rater", "Ada Ärger")
    assert _call(*command, "--rater", "Grace") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["Ada Ärger", "Grace    ".strip()]
    assert all(f"http://127.0.0.1:{served[0][1]}/r/" in line for line in lines)
    assert served[0][0] == "127.0.0.1"
    assert "this machine only" in err
    assert "4 images, 2 raters with 28 screens each.\n" in err
    assert "It takes about 7 minutes for 28 screens; you can stop at any time" in err
    assert "/results?key=" in err
    assert "key=" not in out
    assert _call("rate", run_dir, "--links", "--url", "https://study.example/") == 0
    assert capsys.readouterr().out.splitlines()[0].split()[-1].startswith("https://study.example/r/0-")
    assert _call("rate", run_dir, "--port", 0, "--host", "0.0.0.0") == 0
    assert "unencrypted" in capsys.readouterr().err


def test_results_are_printed_and_put_into_the_report(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _answer_everything(made / "rating")
    assert _call("rate", made, "--results", "--out", made.parent / "out") == 0
    out, err = capsys.readouterr()
    for heading in ("Raters", "Agreement", "Ranking", "Pairs", "Points, 1 to 5", "Correlation of metrics with people"):
        assert heading in out
    assert "Ada" in out
    verdict = r"^\w+ against \w+: preferred in [01]\.\d+ \[.*\] of their comparisons, (which|more than) chance "
    assert len(re.findall(verdict, out, re.MULTILINE)) == 2
    for criterion in ("right (precision)", "complete (recall)", "well written (fluency)", "concise (conciseness)"):
        assert out.count(criterion) == 2
    assert {Path(line).name for line in err.splitlines()} == {
        "results.json",
        "answers.csv",
        "rating.json",
        "report.html",
    }
    page = (made / "report.html").read_text()
    assert 'id="ratings"' in page
    assert "Krippendorff" in page
    assert _call("rate", made, "--results", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((made / "rating.json").read_text())
    assert set(written.pop("captions")) == {"pretrained", "epoch1"}
    assert printed == written
    assert f"{printed['win_rates']['human']['value']:.3f}" in page
    # A study is also found by its folder, and by nothing else.
    assert _call("rate", made / "rating", "--results", "--json") == 0
    assert json.loads(capsys.readouterr().out) == printed


def test_the_report_is_written_again_with_the_people_in_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from captune.errors import InputError
    from captune.report import write_page

    _answer_everything(made / "rating")
    assert _call("rate", made, "--results") == 0
    with_people = (made / "report.html").read_text()
    assert write_page(made).read_text() == with_people
    results = (made / "rating.json").read_text()
    for broken in (
        '{"format": 1}',
        results.replace('"units"', '"unit"'),
        results.replace('"counted": ', '"counted": 0.5, "x": '),
    ):
        (made / "rating.json").write_text(broken)
        with pytest.raises(InputError, match=r"[Cc]all `captune rate --results` again, or remove the file"):
            write_page(made)
    (made / "rating.json").unlink()
    assert 'id="ratings"' not in write_page(made).read_text()
    capsys.readouterr()


def _change_captions(run: Path) -> None:
    """Another run with images of the same ids, in the same folder."""
    scores = json.loads((run / "scores.json").read_text())
    for row in scores["checkpoints"]:
        row["captions"] = {image: f"{text} again" for image, text in row["captions"].items()}
    (run / "scores.json").write_text(json.dumps(scores))


@pytest.mark.parametrize("arguments", [("--results",), ("--links",), ("--port", "0")])
def test_a_study_of_other_captions_is_refused(
    made: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    from captune.report import write_page

    _answer_everything(made / "rating")
    assert _call("rate", made, "--results") == 0
    rated = (made / "rating.json").read_bytes()
    _change_captions(made)
    capsys.readouterr()
    assert _call("rate", made, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "was made of other captions" in err
    assert (made / "rating.json").read_bytes() == rated
    # Results for the earlier captions are not shown next to the new ones.
    assert 'id="ratings"' not in write_page(made).read_text()
    # The study itself still has its results.
    assert _call("rate", made / "rating", "--results") == 0
    out, err = capsys.readouterr()
    assert "Ada" in out
    assert f"Nothing was written into {made}" in err
    assert (made / "rating.json").read_bytes() == rated


def test_a_study_of_other_images_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from captune.report import write_thumbnails

    monkeypatch.setattr("captune.apps.run_server", lambda application, listener: listener.close())
    pictures = {path.stem: path for path in (run_dir / "pictures").iterdir()}
    write_thumbnails(run_dir, pictures)
    assert _call("rate", run_dir, "--images", 4, "--port", 0) == 0
    Image.new("RGB", (40, 30), "blue").save(run_dir / "pictures" / "other.png")
    write_thumbnails(run_dir, dict.fromkeys(pictures, run_dir / "pictures" / "other.png"))
    assert _call("rate", run_dir, "--results") == 2
    assert "was made of other images" in capsys.readouterr().err


def test_one_server_a_study(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from captune.data.locks import folder_lock

    with folder_lock(made / "rating", "captune rate"):
        assert _call("rate", made, "--port", 0) == 2
        assert "is in use: captune rate" in capsys.readouterr().err
        assert _call("rate", made, "--links") == 0
        assert _call("rate", made, "--results") == 0
    with folder_lock(made, "captune train"):
        assert _call("rate", made, "--results") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--design", "best"), "--design is 'best', expected one of: pairwise, rubric, both."),
        (("--seed", "7"), "was made with seed 42"),
        (("--images", "5"), "was made with images 4"),
        (("--systems", "epoch0"), "compares pretrained, epoch1, human"),
        (("--raters", "0"), "1 raters already"),
        (("--results", "--min-attention", "3"), "expected 0 to 1"),
        (("--port", "0", "--url", "study.example"), "expected the beginning of the links"),
        (("--host", "203.0.113.7", "--port", "0"), "no address of this machine"),
    ],
)
def test_wrong_options_on_a_study(
    made: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call("rate", made, *arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1


def test_what_makes_no_study(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = run_dir / "pictures"
    for arguments, sentence in (
        ((run_dir,), "No picture of a captioned image was found"),
        ((run_dir, "--results"), "holds no study yet"),
        ((run_dir.parent,), "scores.json does not exist"),
        ((run_dir, "--pictures", pictures, "--systems", "epoch7"), "There is no system 'epoch7'"),
        ((run_dir, "--pictures", pictures, "--judgements", "9"), "need at least as many raters, not 3"),
        ((run_dir, "--pictures", pictures, "--raters", "9999"), "9999 raters are too many"),
    ):
        assert _call("rate", *arguments) == 2
        assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in run_dir.iterdir()) == ["pictures", "scores.json"]


def test_a_taken_port_is_one_sentence(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from captune.apps import listening_socket

    with listening_socket("127.0.0.1", 0) as taken:
        assert _call("rate", made, "--port", taken.getsockname()[1]) == 2
    assert "is in use; give another one with --port." in capsys.readouterr().err


def test_more_raters_join_later(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("rate", made, "--rater", "Grace", "--port", 0) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["Ada", "Grace"]
    assert "The study has 2 raters now." in err
    assert _call("rate", made, "--rater", "Grace", "--port", 0) == 0, "the same call again resumes"
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_broken_picture_is_named_and_leaves_nothing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for picture in (run_dir / "pictures").iterdir():
        picture.write_bytes(picture.read_bytes()[:40])
    assert _call("rate", run_dir, "--pictures", run_dir / "pictures", "--images", 4) == 2
    assert "cannot decode the image" in capsys.readouterr().err
    assert not (run_dir / "rating").exists()
    shutil.rmtree(run_dir / "pictures")
