"""README and docs: every code block is executed, page by page, in a folder with the files that the pages name.

Each page has a folder with photos, caption files, tuned runs, and tiny models in place of those of the hub. The blocks
of a page run there in their order: commands and Python in this process, configurations as files. The comment
`<!-- not run: reason -->` before a block leaves it out, and `<!-- not run (text): reason -->` its commands with that
text; `test_commands.py` parses them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import tarfile
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

pytest.importorskip("torch")
pytest.importorskip("fastapi")

from starlette.testclient import TestClient
from vision_families import FAMILIES, save_family

import captune.apps
import captune.report.write
from captune.cli import app, call, run
from captune.config import RunConfig, parse_config
from captune.data import Sample, read_manifest, write_manifest
from captune.evaluation import load_protocol
from captune.hub import locate_model
from captune.metrics import ObjectVocabulary
from captune.report import RunScores
from captune.toy import write_flickr30k

REPOSITORY = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").rglob("*.md"))]
MOST_NOT_RUN = 27
"""Blocks, or commands of a block, that may be left out; lower it when one more is executed."""
STAND_INS = {
    "MODEL": "toy",
    "weights/minigpt4-vicuna-7b": "toy",
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-VL-4B-Instruct": "qwen3_vl",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "Salesforce/blip2-opt-2.7b": "toy-vlm",
    "Salesforce/blip-image-captioning-base": "toy-vlm",
    "llava-hf/llava-1.5-7b-hf": "llava",
    "my/model": "qwen3_vl",
}
"""Models by the name that pages use, and the packaged one or the family of tiny models that takes its place."""
BEFORE = {
    "docs/command-line.md": ["captune init photos --model toy-vlm"],
    "docs/compare.md": [
        "captune prepare table photos.csv --out photos/manifest.jsonl --split train=0.6,test=0.4",
        "captune export runs/qwen3_vl_2b --merge --out merged/",
    ],
    "docs/hardware.md": ["captune init photos --model toy-vlm"],
    "docs/review.md": ["captune caption toy photos --out captions.jsonl"],
}
"""Commands that a page takes for granted."""
INSTALLS = r"pip install |make |python3 -m venv |source "
"""Beginnings of commands that install something or call other tests; extras and targets of make are looked up."""


@dataclass
class Block:
    """A fenced block of a page, and why it, or some of its commands, are not run."""

    page: str
    line: int
    language: str
    title: str
    content: str
    reason: str = ""
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page with the comments before them."""
    blocks: list[Block] = []
    reason, left_out = "", {}
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "html_block":
            for part, why in re.findall(r"<!-- not run(?: \((.+?)\))?: (.+?) -->", token.content):
                if part:
                    left_out[part] = why
                else:
                    reason = why
        elif token.type == "fence":
            language, _, rest = token.info.partition(" ")
            title = re.search(r'title="(.+?)"', rest)
            assert token.map is not None
            name = title[1] if title else ""
            blocks.append(Block(page, token.map[0] + 1, language, name, token.content, reason, left_out))
            reason, left_out = "", {}
        elif token.type in ("paragraph_open", "heading_open"):
            assert not reason, f"{page}: a comment 'not run' belongs before a block"
            assert not left_out, f"{page}: a comment 'not run' belongs before a block"
    return blocks


BLOCKS = {page: blocks_of(page, (REPOSITORY / page).read_text(encoding="utf-8")) for page in PAGES}


def captune_command(line: str) -> None:
    """Run a command of captune in this process."""
    code = run(lambda: call(app, shlex.split(line)[1:]))
    assert code == 0, f"exit code {code}: {line}"


def lines_of(block: Block) -> Iterator[str]:
    """Commands of a block, without remarks; output that follows `$ command` is left out."""
    lines = block.content.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        command = re.sub(r"(^|\s+)#\s.*", "", line).strip()
        if command and not any(part in command for part in block.left_out):
            yield command


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages: data, stand-ins of models, and a run of each kind of model."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "train_configs").mkdir()
    for file in (REPOSITORY / "train_configs").glob("*.yaml"):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        # Models with random weights do not stop before the limit.
        config["evaluate"] = {**config.get("evaluate", {}), "max_new_tokens": 8}
        (folder / "train_configs" / file.name).write_text(yaml.safe_dump(config), encoding="utf-8")
    for name, model in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if model in FAMILIES:
            save_family(model, folder / name)
        else:
            (folder / name).symlink_to(locate_model(model))
    previous = Path.cwd()
    os.chdir(folder)
    try:
        write_data(folder)
        captune_command("captune train train_configs/minigpt4_flickr_finetune.yaml -q")
        captune_command("captune train train_configs/qwen3_vl_2b.yaml -q")
        # Two images, since the page of robustness corrupts each of them 25 times.
        captune_command("captune train train_configs/toy.yaml data.train=few.jsonl train.epochs=1 output=runs/mine -q")
    finally:
        os.chdir(previous)
    for name in ("photos", "x", "a", "b"):
        shutil.copytree(folder / "runs/qwen3_vl_2b", folder / "runs" / name, symlinks=True)
    (folder / "my/adapter").symlink_to("../runs/qwen3_vl_2b/checkpoints/epoch-002")
    (folder / "out").mkdir()
    (folder / "out/checkpoint-500").symlink_to("../runs/qwen3_vl_2b/checkpoints/epoch-002")
    (folder / "my-peft-adapter").symlink_to("runs/qwen3_vl_2b/checkpoints/epoch-002")
    return folder


def write_data(folder: Path) -> None:
    """Images, manifests and caption files under the names that pages use."""
    write_flickr30k(folder / "flickr30k", train=8, val=2, test=3, seed=7)
    captune_command("captune prepare flickr30k flickr30k --out flickr30k/manifest.jsonl -q")
    scenes = [json.loads(line) for line in Path("flickr30k/manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    images = [folder / "flickr30k" / scene["image"] for scene in scenes]
    for name, count in (("photos", 10), ("holiday", 2), ("10_sks dog", 2), ("images", 4), ("tars", 2)):
        (folder / name).mkdir()
        for index in range(count):
            image = folder / name / f"IMG_{index}.jpg"
            shutil.copy(images[index], image)
            if name in ("photos", "tars"):
                image.with_suffix(".txt").write_text(scenes[index]["captions"][0], encoding="utf-8")
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copy(images[0], folder / name)
    with tarfile.open(folder / "tars/images-00000.tar", "w") as archive:
        for image in sorted((folder / "tars").glob("IMG_*")):
            archive.add(image, image.name)
            image.unlink()
    for path, splits in (
        ("manifest.jsonl", ("train", "restval", "val", "test")), ("train.jsonl", ("train",)), ("test.jsonl", ("test",)),
        ("other.jsonl", ("test",)), ("few.jsonl", ("train", "val", "test")),
("coco/manifest.jsonl", ("val",)), ("nocaps/manifest.jsonl", ("val",)),
        ("my/manifest.jsonl", ("train", "test")), ("runs/demo/flickr30k/manifest.jsonl", ("train", "restval", "test")),
    ):  # fmt: skip
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        offset = 9 if len(splits) == 1 and splits[0] != "train" else 0
        samples = [
            Sample(
                str(index), os.path.relpath(images[index], (folder / path).parent), tuple(scenes[index]["captions"]),
                splits[index % len(splits)],
            )
            for index in range(offset, offset + 2 * len(splits))
        ]  # fmt: skip
        write_manifest(folder / path, samples)
    (folder / "photos.csv").write_text(
        "image,caption\n" + "".join(f"IMG_{index}.jpg,A drawn scene.\n" for index in range(10)), encoding="utf-8"
    )
    write_judgements(folder)
    references = {str(number): scene["captions"] for number, scene in enumerate(scenes[:8])}
    for name in ("refs.json", "annotations.json"):
        (folder / name).write_text(json.dumps(references), encoding="utf-8")
    for name in ("captions", "results", "before", "after", "a", "b", "a1", "a2", "b1", "b2"):
        predictions = {key: captions[len(name) % 2] for key, captions in references.items()}
        (folder / f"{name}.json").write_text(json.dumps(predictions), encoding="utf-8")


def write_judgements(folder: Path) -> None:
    """Captions with judgements of people, and of COCO with objects, in their published forms."""
    captions = ["a dog runs on grass", "a man rides a horse", "two cats sit on a bench", "a red boat on a lake"]
    images = [f"{number}_a.jpg" for number in range(4)]
    tokens = [f"{image}#{n}\t{text} {n}" for image, text in zip(images, captions, strict=True) for n in range(5)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    votes = [f"{image}\t{other}#2\t{share}\t{int(3 * share)}\t{3 - int(3 * share)}" for image in images
             for other, share in ((image, 1), (images[0], 0))]  # fmt: skip
    (folder / "CrowdFlowerAnnotations.txt").write_text("\n".join(votes) + "\n", encoding="utf-8")
    records = [{"id": number, "file_name": f"{number}.jpg"} for number in range(4)]
    annotations = [
        {"image_id": n, "id": 10 * n + k, "caption": f"{text} {k}"} for n, text in enumerate(captions) for k in range(5)
    ]
    foils = [{"image_id": n, "id": 10 * n, "caption": text, "foil": foil} for n, caption in enumerate(captions)
             for foil, text in ((False, f"{caption} 0"), (True, f"zebra {caption}"))]  # fmt: skip
    objects = {"images": records, "categories": [{"id": 1, "name": "dog"}],
               "annotations": [{"image_id": n, "id": n, "category_id": 1} for n in range(4)]}  # fmt: skip
    for name, content in (("foilv1.0_test_2017", {"images": records, "annotations": foils}),
                          ("captions_val2014", {"images": records, "annotations": annotations}),
                          ("instances_val2014", objects)):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def one_chart() -> Iterator[None]:
    """Draw a chart once: it takes as long as the training of a tiny model, and other tests look at charts."""
    with pytest.MonkeyPatch.context() as patch:
        draw, charts = captune.report.write.draw_chart, dict[Any, dict[str, bytes]]()

        def draw_once(run: RunScores, formats: Sequence[str]) -> dict[str, bytes]:
            if tuple(formats) not in charts:
                charts[tuple(formats)] = draw(run, formats)
            return charts[tuple(formats)]

        patch.setattr(captune.report.write, "draw_chart", draw_once)
        yield


def served(application: Any, listener: Any) -> None:
    """Request the front page in place of serving until Ctrl-C."""
    with TestClient(application, base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
        assert client.get("/").status_code == 200


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]])
def test_the_blocks_of_the_page_run(
    page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "page"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(captune.apps, "run_server", served)
    listen = captune.apps.listening_socket
    monkeypatch.setattr(captune.apps, "listening_socket", lambda host, port: listen(host, 0))
    for command in BEFORE.get(page, []):
        captune_command(command)
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        if block.reason:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a library's, as in the program
                run_block(block, names)
        except BaseException as error:
            pytest.fail(f"{block}: {error}\n{''.join(capsys.readouterr())[-3000:]}")


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run the commands or the code of a block, or read its data; a title is the name of its file."""
    if block.title:
        Path(block.title).write_text(block.content, encoding="utf-8")
    if block.language in ("bash", "console"):
        for line in lines_of(block):
            if re.match(INSTALLS, line):
                check_installation(line)
                continue
            assert line.startswith("captune "), f"neither executed nor left out with a reason: {line}"
            captune_command(line)
    elif block.language == "python":
        exec(compile(block.content, str(block), "exec"), names)
    elif block.language == "yaml":
        check_yaml(yaml.safe_load(block.content), block)
    elif block.language == "json":
        Path("block.jsonl").write_text(block.content, encoding="utf-8")
        assert read_manifest("block.jsonl")
    elif block.language == "toml":
        tomllib.loads(block.content)


def check_yaml(content: dict[str, Any], block: Block) -> None:
    """Validate a configuration, a protocol or a vocabulary; the next command reads what has a title."""
    if "classes" in content:
        ObjectVocabulary.read(block.title)
    elif content.keys() <= RunConfig.model_fields.keys():
        parse_config(content)
    else:
        load_protocol(block.title)


def check_installation(command: str) -> None:
    """Look up the extras of `pip install`, and the targets of `make`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"(?:captune|\.)\[(.+?)\]", command):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys(), command
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert not command.startswith("make ") or command.split()[1] in targets, command


def test_what_is_not_run_is_parsed_and_has_a_reason() -> None:
    reasons = []
    for block in (block for blocks in BLOCKS.values() for block in blocks):
        if block.reason and block.language == "python":
            ast.parse(block.content)
        for part, reason in block.left_out.items():
            assert part in block.content, f"{block}: no command has {part}"
            reasons.append(f"{block} ({part}): {reason}")
        if block.reason:
            reasons.append(f"{block}: {block.reason}")
    print(*reasons, f"{len(reasons)} not run", sep="\n")
    assert len(reasons) <= MOST_NOT_RUN


def test_the_package_layout_names_existing_files() -> None:
    (layout,) = (block.content for block in BLOCKS["README.md"] if block.content.startswith("captune/\n"))
    folder, missing = REPOSITORY, []
    for line in layout.splitlines():
        names = line.strip().split("  ")[0].split(", ")
        if line.startswith(" " * 20):
            continue  # a description that continues
        parent = folder / "captune" if line.startswith("  ") else folder
        missing += [name for name in names if not (parent / name).exists()]
    assert not missing
