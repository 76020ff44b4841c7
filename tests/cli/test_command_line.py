"""What holds for every command: help, examples, options that all share, completion, and a quick start."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from captune import cli
from captune.cli import app
from tests.programs import Finished, run_program

GROUP = typer.main.get_command(app)
HEAVY = {"torch", "transformers", "rich", "numpy", "matplotlib"}
WITHOUT_JSON = {"config schema"}
"""Commands whose data is JSON anyway."""


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with the words that name it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


ALL = list(walk(GROUP))
NAMES = [" ".join(path) or "captune" for path, _ in ALL]


def help_of(path: tuple[str, ...], flag: str = "--help", width: int = 80) -> str:
    """The help, formatted in this process."""
    context = GROUP.make_context("captune", [], resilient_parsing=True, terminal_width=width - 2)
    for name in path:
        context = context.command.commands[name].make_context(  # type: ignore[attr-defined]
            name, [], parent=context, resilient_parsing=True
        )
    assert flag in context.command.get_help_option_names(context)
    return str(context.get_help())


@pytest.mark.parametrize(("path", "command"), ALL, ids=NAMES)
def test_the_help_is_complete_at_80_columns(path: tuple[str, ...], command: Any) -> None:
    assert help_of(path) == help_of(path, "-h")
    lines = help_of(path).splitlines()
    shown, examples = lines, command.examples
    assert examples, "a command's docstring ends with examples"
    assert lines[-len(examples) :] == [f"  {example}" for example in examples]
    assert [line for line in shown if len(line) > 80 and line.strip() not in examples] == []
    assert [line for line in shown if re.search(r"\w\.\.\.$", line) and "Usage:" not in line] == []
    # Every option that the command has is in its help.
    text = "\n".join(shown)
    for parameter in command.params:
        assert all(option in text for option in parameter.opts if option.startswith("-"))


def test_the_help_lists_every_command_with_a_complete_sentence() -> None:
    text = " ".join(help_of(()).split())
    for path, command in ALL:
        if len(path) == 1:
            sentence = " ".join(command.help.partition("\n\n")[0].split()).partition(". ")[0]
            assert f"{path[0]} {sentence}" in text
    assert [line for line in help_of(()).splitlines() if re.fullmatch(r"\w+:", line)][:5] == [
        "Data:",
        "Train:",
        "Measure:",
        "Use:",
        "People:",
    ]


@pytest.mark.parametrize(("path", "command"), ALL, ids=NAMES)
def test_every_example_can_be_parsed(path: tuple[str, ...], command: Any) -> None:
    for example in command.examples:
        assert len(example) <= 100
        words = shlex.split(example)
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        assert words[0] == "captune"
        node, arguments = GROUP, words[1:]
        while hasattr(node, "commands"):
            node, arguments = node.commands[arguments[0]], arguments[1:]
        if path:
            assert words[1 : 1 + len(path)] == list(path)
        node.make_context(node.name, arguments)


@pytest.mark.parametrize(("path", "command"), ALL, ids=NAMES)
def test_every_command_has_the_shared_options(path: tuple[str, ...], command: Any) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    shared = {"-q", "--quiet", "-v", "--verbose", "--no-color", "--log-file", "--progress-every"}
    assert shared <= options
    assert ("--out" in options) <= ("-o" in options)
    if path and not hasattr(command, "commands") and " ".join(path) not in WITHOUT_JSON:
        assert "--json" in options
        assert any(parameter.name == "as_json" for parameter in command.params)


def test_the_page_documents_every_summary(repository: Path) -> None:
    page = (repository / "docs" / "command-line.md").read_text(encoding="utf-8")
    table = page.partition("## JSON summaries")[2].partition("## ")[0]
    for path, command in ALL:
        if path and not hasattr(command, "commands") and " ".join(path) not in WITHOUT_JSON:
            name = "prepare FORMAT" if path[0] == "prepare" else " ".join(path)
            assert f"`{name}`" in table


def captune(*arguments: object, cwd: Path | None = None, **environment: str) -> Finished:
    return run_program(sys.executable, "-m", "captune", *arguments, cwd=cwd, **environment)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["train", "-h"], ["score", "--help"], ["caption", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    probe = (
        "import sys, captune.cli as cli\n"
        f"code = cli.call(cli.app, {arguments!r})\n"
        f"print(code, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = run_program(sys.executable, "-c", probe)
    assert done.err.splitlines()[-1] == "0 []"
    assert "Usage: captune" in done.out


def test_options_before_and_after_the_name_are_equal(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"id": "1", "captions": ["a dog runs"]}\n{"id": "2", "captions": ["a cat"]}\n')
    (tmp_path / "p.jsonl").write_text('{"id": "1", "caption": "a dog runs"}\n{"id": "2", "caption": "a cat sits"}\n')
    words = ["score", "-r", "r.jsonl", "-p", "p.jsonl", "--metrics", "bleu"]
    first = captune("--quiet", "--log-file", "a.log", *words, cwd=tmp_path)
    last = captune(*words, "-q", "--log-file", "b.log", cwd=tmp_path)
    assert (first.code, first.err) == (last.code, last.err) == (0, "")
    assert (tmp_path / "a.log").exists()
    assert (tmp_path / "b.log").exists()


def test_errors_are_printed_under_quiet_and_are_in_the_log_file(tmp_path: Path) -> None:
    done = captune("-q", "train", "missing.yaml", "--log-file", "logs/run.log", cwd=tmp_path)
    assert done.code == 2
    assert "missing.yaml" in done.err
    assert done.err.startswith("captune: ")
    assert "ERROR" in (tmp_path / "logs" / "run.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["score", "--metricz"], "No such option: --metricz; did you mean --metric? See captune score --help."),
        (["train", "--zzz"], "No such option: --zzz. See captune train --help."),
        (["trian"], "No such command 'trian'. Did you mean 'train'? See captune --help."),
        (["train"], "Missing argument 'config'. See captune train --help."),
        (["check", "missing.jsonl"], "There is no file 'missing.jsonl'."),
        (["caption", "toy", "x.jpg", "--json"], "There is no file or folder 'x.jpg'."),
        (
            ["evaluate", "missing"],
            "There is no configuration or run missing; give a YAML file or the folder of a run (for a model without a "
            "run add --data).",
        ),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = captune(*arguments)
    assert (done.code, done.out, done.err) == (2, "", f"captune: {sentence}\n")


def complete(line: str, cwd: Path) -> list[str]:
    """What a shell offers for the last word of a line."""
    words = line.split(" ")
    done = run_program(
        sys.executable,
        "-c",
        "from captune.cli import main; main()",
        cwd=cwd,
        _CAPTUNE_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    assert done.err == ""
    return done.out.split()


def test_completion_of_commands_options_and_metrics(tmp_path: Path) -> None:
    assert complete("captune tr", tmp_path) == ["train"]
    assert complete("captune train --over", tmp_path) == ["--overwrite"]
    assert "cider,meteor" in complete("captune score --metrics cider,me", tmp_path)
    assert complete("captune score --metric CI", tmp_path) == ["CIDEr", "CIDEr-D", "CIDEr-R"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str, tmp_path: Path) -> None:
    program = tmp_path / shell
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -m captune --show-completion {shell}\n")
    done = captune("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.code == 0
    assert "_CAPTUNE_COMPLETE=complete_" + shell in done.out


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_no_color_reaches_the_help() -> None:
    import pty

    def headings(*arguments: str) -> bytes:
        main, other = pty.openpty()
        child = os.spawnvpe(
            os.P_NOWAIT,
            "/bin/sh",
            ["sh", "-c", f"exec {sys.executable} -m captune {shlex.join(arguments)} > {os.ttyname(other)}"],
            {**os.environ, "TERM": "xterm"},
        )
        text = b""
        while not text.rstrip().endswith(b"captions.json"):
            text += os.read(main, 4096)
        os.waitpid(child, 0)
        os.close(main)
        os.close(other)
        return text

    assert b"\x1b[1mData\x1b[0m:" in headings("--help")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "a", "b"], "to compare runs, use: captune runs compare a b"),
        (["compare", "a", "b", "a"], "to compare runs, use: captune report a b a"),
        (["compare", "a"], "Missing option '--references' / '-r'. See captune compare --help."),
        (["caption", "a"], "give both, such as: captune caption runs/photos a"),
        (["caption", "none"], "Missing argument 'inputs'. See captune caption --help."),
    ],
)
def test_arguments_of_another_command(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    assert cli.run(lambda: cli.call(cli.app, arguments)) == 2
    assert capsys.readouterr().err.endswith(f"{sentence}\n")


def test_an_interrupt_while_the_program_starts_is_one_line() -> None:
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'captune.cli.scoring': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from captune.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "captune: Stopped by Ctrl-C.\n")


def test_the_program_is_the_module(repository: Path) -> None:
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"captune": "captune.__main__:main"}
