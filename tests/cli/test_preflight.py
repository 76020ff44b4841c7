"""A command refuses within a second what it could only refuse later, and libraries stay quiet."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import captune
from captune import hub
from captune.cli import app, call, run
from captune.config import STORED_HEADING, commented_yaml, parse_config
from captune.data import manifest_hash
from captune.errors import ConfigError, MissingExtraError, WeightsError
from captune.preflight import check_output_folder, require_extra
from captune.report import CheckpointScores, RunScores, write_scores
from captune.run_checkpoints import CheckpointRecord, checkpoint_folder

WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
import importlib.metadata as metadata
found = metadata.distribution
def distribution(name):
    if name in {blocked}:
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = distribution
from captune.cli import main
sys.argv = ["captune", *{arguments}]
main()
"""


def without(blocked: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run captune as if some libraries were not installed."""
    code = WITHOUT_TORCH.format(blocked=blocked, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def refused_without_torch(*arguments: object) -> str:
    """Run a command that must fail as wrong input before torch is imported; returns what it wrote to stderr."""
    words = [str(word) for word in arguments]
    code = (
        "import sys; from captune.cli import app, call, run\n"
        f"code = run(lambda: call(app, {words!r}))\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    return result.stderr


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a", "image": "a.jpg", "captions": ["A dog."], "split": "train"}\n')
    return path


@pytest.fixture
def settings(tmp_path: Path, manifest: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(f"output: {tmp_path}/run\nmodel: {{path: toy}}\ndata: {{train: {manifest}}}\n")
    return path


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["train", "CONFIG"], "train"),
        (["evaluate", "CONFIG"], "train"),
        (["features", "CONFIG"], "train"),
        (["plan", "CONFIG"], "train"),
        (["explain", "CONFIG"], "train"),
        (["caption", "toy", "MANIFEST"], "train"),
        (["check", "MANIFEST", "--check-images", "none", "--model", "toy"], "train"),
        (["serve", "toy"], "serve"),
    ],
)
def test_a_missing_extra_is_named_before_anything_is_imported(
    command: list[str], extra: str, settings: Path, manifest: Path
) -> None:
    arguments = [{"CONFIG": str(settings), "MANIFEST": str(manifest)}.get(word, word) for word in command]
    result = without(["torch", "transformers", "fastapi"], *arguments)
    assert result.returncode == 2, result.stderr
    assert f"pip install 'captune[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_classes_of_captune_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captune, "_has_torch", lambda: False)
    for name in ("Captioner", "MiniGPT4"):
        # A name that another test has used is a global.
        monkeypatch.delitem(vars(captune), name, raising=False)
        with pytest.raises(MissingExtraError, match=r"captune\[train\]"):
            getattr(captune, name)


def test_every_library_of_an_extra_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    present = metadata.distribution
    looked_for: list[str] = []

    def distribution(name: str) -> metadata.Distribution:
        looked_for.append(name)
        if name == "uvicorn":
            raise metadata.PackageNotFoundError(name)
        return present(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(MissingExtraError, match="serve"):
        require_extra("captune serve", "train", "serve")
    assert {"torch", "transformers", "fastapi"} <= set(looked_for)


@pytest.mark.parametrize(
    ("command", "override", "sentence"),
    [
        *(
            (command, "model.path=./no/model", "There is no model folder ./no/model")
            for command in ("train", "evaluate", "features", "plan", "explain")
        ),
        *((command, "data.train=no.jsonl", "no.jsonl") for command in ("train", "evaluate", "features", "explain")),
    ],
)
def test_wrong_files_are_refused_without_torch(command: str, override: str, sentence: str, settings: Path) -> None:
    assert sentence in refused_without_torch(command, settings, override)


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (
            '{"id": "a", "image": "a.jpg", "captions": ["A dog."], "split": "train"}\n',
            "only train.jsonl",
            "data.evaluate_split is test, and {path} has train (1); set it to one of these, or divide the images with: "
            "captune init '{path}' --split train=0.9,test=0.1\n",
        ),
        (
            "File Name;Text\na.jpg;A dog runs\n",
            "t.csv",
            "{path} is a table and not a manifest; make one with: captune init {path}\n",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_without_torch(
    tmp_path: Path, settings: Path, content: str, name: str, sentence: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    refused = refused_without_torch("train", settings, f"data.train={path}")
    assert refused == f"captune: {sentence.format(path=path)}"


def test_a_table_in_place_of_an_evaluation_manifest_is_one_sentence(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text("File Name;Text\n" + "a.jpg;A dog runs\n" * 40)
    refused = refused_without_torch("evaluate", "toy", "--data", table, "--out", tmp_path / "out")
    assert refused == f"captune: {table} is a table and not a manifest; make one with: captune init {table}\n"
    assert not (tmp_path / "out").exists()


def test_a_captioner_that_is_not_there_is_refused_without_torch(manifest: Path) -> None:
    assert "There is no model folder ./no/model" in refused_without_torch("caption", "./no/model", manifest)


def test_output_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_output_folder(tmp_path / "file" / "run")
    check_output_folder(tmp_path / "new" / "run")


def test_a_full_disk_is_reported_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(OSError, match="1 MiB"):
        check_output_folder(tmp_path)


def test_jars_are_looked_for_before_the_first_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """METEOR takes half a minute; that SPICE cannot run has to be known before."""
    references, predictions = tmp_path / "r.json", tmp_path / "p.json"
    references.write_text('{"1": ["a dog"], "2": ["a cat"]}')
    predictions.write_text('{"1": "a dog", "2": "a cat"}')
    started = []
    arguments = ["score", "--references", str(references), "--predictions", str(predictions)]
    arguments += ["--metrics", "bleu,meteor,spice", "--spice-models", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captune.metrics.external.meteor.meteor", lambda *args, **options: started.append("meteor"))
        assert run(lambda: call(app, arguments)) == 2
    assert not started
    assert "captune fetch" in capsys.readouterr().err


class TestOffline:
    @pytest.fixture(autouse=True)
    def _online(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        hub.detect_offline.cache_clear()

    def test_a_hub_that_takes_no_connection_is_not_tried_again(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        attempts = []

        def refuse(address: tuple[str, int], timeout: float) -> None:
            attempts.append(address)
            raise ConnectionRefusedError

        monkeypatch.setattr("socket.create_connection", refuse)
        for name in ("user/model", "user/other"):
            assert hub.locate_model(name) == name
            with pytest.raises(WeightsError, match="no connection to"):
                hub.require_available(name)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        (tmp_path / "models--user--model" / "snapshots").mkdir(parents=True)
        hub.require_available("user/model")
        hub.require_available("toy")
        assert len(attempts) == 1
        assert constants.HF_HUB_OFFLINE
        hub.detect_offline.cache_clear()

    def test_a_proxy_replaces_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        attempts = []

        class Connection:
            def close(self) -> None: ...

        def accept(address: tuple[str, int], timeout: float) -> Connection:
            attempts.append(address)
            return Connection()

        monkeypatch.setattr("socket.create_connection", accept)
        monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy.example:3128"})
        assert not hub.detect_offline()
        assert attempts == [("proxy.example", 3128)]
        hub.detect_offline.cache_clear()

    def test_local_models_need_no_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.create_connection", lambda *args: pytest.fail("a connection"))
        assert Path(hub.locate_model("toy")).is_dir()


def test_warnings_of_libraries_stay_off_the_screen(tmp_path: Path) -> None:
    code = (
        "import logging, warnings; from captune.cli import run_program\n"
        "def work():\n"
        "    warnings.warn('a library changes', FutureWarning)\n"
        "    logging.getLogger('torchao').warning('skipped a kernel')\n"
        "    logging.getLogger('captune.training').warning('a state is damaged')\n"
        "run_program(work)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == "a state is damaged\n"
    command.insert(1, "-Wdefault")
    assert "a library changes" in subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_captions_come_without_a_word_of_the_libraries(repository: Path) -> None:
    command = [sys.executable, "-m", "captune", "caption", "toy", str(repository / "docs" / "demo.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr in ("", "Loading torch and the model ...\n")
    assert len(done.stdout.splitlines()) == 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, a configuration, and finished runs of `toy-vlm`, as far as no tensors are needed."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [
        {"id": name, "image": f"{name}.jpg", "captions": ["A dog."], "split": name.rstrip("0123456789")}
        for name in ("train", "test1", "test2")
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, parts in (("lora", ["lora"]), ("projector", ["lora", "projector"])):
        settings = {
            "output": str(folder / name),
            "model": {"path": "toy-vlm"},
            "data": {"train": str(folder / "m.jsonl")},
        }
        config = parse_config({**settings, "train": {"epochs": 2, "parts": parts}})
        for epoch in range(2):
            write_checkpoint(folder, config.output, epoch, tuple(parts))
        (config.output / "config.yaml").write_text(commented_yaml(config, STORED_HEADING))
        captions = {"test1": "a dog", "test2": "a cat"}
        references = dict.fromkeys(captions, ("a dog runs",))
        scored = [
            CheckpointScores(name=f"epoch{epoch}", epoch=epoch, corpus={"CIDEr": 0.5}, captions=captions)
            for epoch in range(2)
        ]
        write_scores(RunScores("m", tuple(scored), "test", "karpathy", 2, references), config.output)
        (config.output / "captions").mkdir()
        for row in scored:
            content = [{"image_id": image, "caption": caption} for image, caption in captions.items()]
            (config.output / "captions" / f"m-{row.name}.json").write_text(json.dumps(content))
    (folder / "c.yaml").write_text(commented_yaml(config.model_copy(update={"output": folder / "new"})))
    return folder


def write_checkpoint(data: Path, output: Path, epoch: int, parts: tuple[str, ...]) -> None:
    folder = checkpoint_folder(output, epoch)
    folder.mkdir(parents=True)
    lora = {"r": 16, "alpha": 32.0, "targets": ["all-linear"], "dropout": 0.0}
    record = CheckpointRecord(
        model="toy-vlm",
        frozen="0" * 16,
        instruction="Describe.",
        conversation="chat template",
        stop_symbol="",
        manifest_hash=manifest_hash(data / "m.jsonl"),
        epoch=epoch,
        step=epoch + 1,
        seed=42,
        captune="0.1",
        lora=lora,
        kind="transformers",
        trained=parts,
    )
    (folder / "checkpoint.json").write_text(json.dumps(asdict(record)))
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


START = "train {c} train.parts=[lora] train.start="


REFUSED = [
    ("train {c} train.select=Foo", "train.select is 'Foo', which is no score of this run's protocol"),
    ("train {c} evaluate.protocol=foo", "There is no protocol 'foo'"),
    ("train {c} evaluate.protocol=foo.yaml", "There is no protocol file 'foo.yaml'"),
    ("train {c} data.evaluate_split=val", "data.evaluate_split is val, and "),
    ("train {c} train.sharding=fsdp", "train.sharding is fsdp, which supports MiniGPT-4 only"),
    ("train {c} model.path={lora}/checkpoints/epoch-000", "set model.path to toy-vlm and train.start to "),
    (f"{START}{{lora}}/checkpoints/epoch-007", "There is no folder"),
    (f"{START}{{lora}}@epoch7", "has no checkpoint epoch7; it has epoch0, epoch1"),
    (f"{START}user/none", "There is no folder user/none, and no connection to the Hugging Face hub"),
    (f"{START}{{lora}} train.lora={{{{'rank':8}}}}", "rank is 8, in the checkpoint 16; alpha is 16, in the"),
    (f"{START}{{projector}}", "has trained [lora, projector]; without projector its weights would be lost"),
    (f"{START}{{lora}} train.parts=[language_model]", "set train.parts to these, or merge the checkpoint"),
    (f"{START}{{lora}} model.path=toy", "is a checkpoint of a transformers model, toy-vlm, and not of a MiniGPT-4"),
    (f"{START}{{lora}} output={{lora}}", "which is inside of the output folder"),
    ("train {c} output={projector} train.epochs=1", "more epochs continue a run, fewer do not shorten it"),
    ("train {c} output={projector} seed=7", "another configuration (seed: 42 -> 7)"),
    ("plan {c} train.select=Foo", "train.select is 'Foo'"),
    ("plan {c} train.start={lora}@epoch7", "has no checkpoint epoch7"),
    ("explain {c} train.select=Foo", "train.select is 'Foo'"),
    ("explain {c} train.start={lora}@epoch7", "has no checkpoint epoch7"),
    ("explain {c} --image none", "has no image 'none' among its 1 training images"),
    (
        "export {lora} --original --out {new}",
        "is of a transformers model, and the original code has MiniGPT-4 only",
    ),
    ("convert --to-official {lora}/checkpoints/epoch-000 --out {new}", "the original code has MiniGPT-4 only"),
    (
        "export {lora} --base ./no/model --out {new}",
        "trained on the model ./no/model (weights 0000000000000000)",
    ),
    ("export {lora} --merge --base user/none --out {new}", "which cannot be loaded: user/none cannot be read"),
    ("export {lora}@epoch7 --out {new}", "has no checkpoint epoch7"),
    ("push {lora} --base ./no/model --to {new}", "was trained on the model ./no/model"),
    ("evaluate {lora} --protocol foo", "There is no protocol 'foo'"),
    ("evaluate {lora} --split none", "data.evaluate_split is none, and "),
    ("evaluate {lora} --checkpoint {lora}/none", "holds no checkpoint.json"),
    ("evaluate {lora} --captioner ./no/model", "There is no model folder ./no/model"),
    ("evaluate {lora} --corrupt foo", "There is no corruption 'foo'"),
    ("evaluate {lora} --prompts none.txt", "There is no list of instructions 'none.txt'"),
    ("caption {lora}@epoch7 {m}", "has no checkpoint epoch7"),
    ("serve {lora}@epoch7", "has no checkpoint epoch7"),
    ("runs compare {lora} {lora}", "are the same run"),
]
ALL = """
import contextlib, io, json, sys
from captune.cli import app, call, run
for words in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = run(lambda: call(app, words))
    print(json.dumps([code, errors.getvalue(), "torch" in sys.modules]))
"""
"""Commands in one process, which would need a second each in separate ones."""


@pytest.fixture(scope="module")
def refusals(runs: Path) -> dict[str, list[Any]]:
    names = {
        "c": runs / "c.yaml",
        "m": runs / "m.jsonl",
        "lora": runs / "lora",
        "projector": runs / "projector",
        "new": runs / "new",
    }
    commands = [[word.format(**names) for word in command.split()] for command, _ in REFUSED]
    result = subprocess.run([sys.executable, "-c", ALL, json.dumps(commands)], capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert len(lines) == len(REFUSED), result.stderr
    return {command: json.loads(line) for (command, _), line in zip(REFUSED, lines, strict=True)}


@pytest.mark.parametrize(("command", "sentence"), REFUSED)
def test_what_does_not_fit_a_run_is_refused_without_torch(
    command: str, sentence: str, refusals: dict[str, list[Any]], runs: Path
) -> None:
    code, refused, has_torch = refusals[command]
    assert (code, has_torch) == (2, False), refused
    assert sentence in refused
    assert len(refused.splitlines()) <= 2, "a sentence, and at most the checkpoint that is used"
    assert not (runs / "new" / "config.yaml").exists()


def test_a_finished_run_is_used_again_without_torch(runs: Path) -> None:
    code = (
        "import sys; from captune.cli import app, call, run\n"
        f"code = run(lambda: call(app, ['train', {str(runs / 'c.yaml')!r}, 'output={runs / 'projector'}']))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\nsys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Reusing the finished run" in result.stderr
