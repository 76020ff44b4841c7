"""README and docs: every printed command of captune exists and parses, and the README's code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt

from captune.cli import app
from captune.config import RunConfig
from captune.evaluation import split_settings

REPOSITORY = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs").rglob("*.md"))]


def commands_of(text: str) -> list[str]:
    """Commands of the code blocks that begin with `captune`; a backslash at the end continues a line."""
    tokens = MarkdownIt("commonmark").parse(text)
    blocks = [token.content for token in tokens if token.type == "fence" and token.info in ("bash", "console")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.strip().removeprefix("$ ") for line in lines if re.match(r"(\$ )?captune ", line.strip())]
    return [re.sub(r"\s+#\s.*", "", command) for command in commands]


def parse(command: str) -> None:
    """Parse the options of a command as the program does, without opening the files that it names."""
    arguments = [word for word in shlex.split(command)[1:] if word not in ("-h", "--help")]
    parent: Any = typer.main.get_command(app)
    context = parent.context_class(parent, info_name="captune")
    while hasattr(parent, "commands"):
        if arguments and arguments[0] in parent.commands:
            parent = parent.get_command(context, arguments.pop(0))
        else:
            assert "list" in parent.commands or not arguments or arguments[0].startswith("-"), (
                f"no such command: {command}"
            )
            parent = parent.get_command(context, "list") if "list" in parent.commands else None
            if parent is None:
                return
    child = parent.context_class(parent, info_name="command", parent=context)
    _, rest, _ = parent.make_parser(child).parse_args(arguments)
    assert not [word for word in rest if word.startswith("--")], command


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_parse(page: str) -> None:
    keys = set(re.findall(r"`([a-z_.]+)`", (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")))
    for command in commands_of((REPOSITORY / page).read_text(encoding="utf-8")):
        if "COMMAND" not in command:
            parse(command)
        for key in (text.partition("=")[0] for text in split_settings(shlex.split(command))[1]):
            known = key.rpartition(".")[2] in keys and key.partition(".")[0] in RunConfig.model_fields
            assert known or command.startswith("captune prepare"), f"{page}: {command}"


def test_a_wrong_option_is_found() -> None:
    with pytest.raises(Exception, match="--no-such"):
        parse("captune score --no-such 3")
    with pytest.raises(AssertionError, match="no such command"):
        parse("captune measure")


def test_remarks_are_left_out_and_lines_are_joined() -> None:
    text = (
        "```bash\ncaptune train a.yaml   # it's a remark\ncaptune convert a \\\n    --out b\n```\n\n"
        "- In a list\n\n    ```console\n    $ captune init photos\n    captions  a table\n    ```\n"
    )
    assert [command.split() for command in commands_of(text)] == [
        ["captune", "train", "a.yaml"],
        ["captune", "convert", "a", "--out", "b"],
        ["captune", "init", "photos"],
    ]


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_name_their_language(page: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse((REPOSITORY / page).read_text(encoding="utf-8"))
    for token in tokens:
        assert token.type != "code_block", f"{page}: write a fence with a language: {token.content}"
        if token.type == "fence":
            language = token.info.partition(" ")[0]
            assert language in ("bash", "console", "python", "yaml", "json", "toml", "text"), f"{page}: {token.content}"


def test_the_scores_of_the_readme_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    pattern = r"^```python\n(from captune\.metrics import score_captions\n.*?)```"
    block = re.search(pattern, readme, re.MULTILINE | re.DOTALL)
    assert block is not None
    exec(compile(block[1], "README.md", "exec"), {})
    assert "CIDEr" in capsys.readouterr().out


def test_the_error_sentences_of_the_page_exist() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sentences = re.findall(r'^### "(.*)"$', page, flags=re.MULTILINE)
    code = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "captune").rglob("*.py"))
    assert len(sentences) > 15
    assert [sentence for sentence in sentences if sentence not in code] == []


def test_the_differences_are_those_that_the_program_printed() -> None:
    page = (REPOSITORY / "docs" / "differences.md").read_text(encoding="utf-8")
    printed = (REPOSITORY / "benchmarks" / "results" / "number_differences.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z]\S+) \| (.*) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert rows == re.findall(r"^(\S+) +(.*?) {2,}([\d.]+)$", printed, re.MULTILINE)
    assert len(rows) > 15
