"""The top level: what `import captune` offers, to programs, to `help` and to type checkers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

import pytest

import captune
from captune.errors import MissingExtraError

OPTIONS = ("DecodingOptions", "ScoringOptions")
"""Records that users fill."""


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in captune.__all__:
        value = getattr(captune, name)
        assert name in dir(captune)
        assert name == "__version__" or inspect.getdoc(value), name


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'captune' has no attribute 'tuning'"):
        captune.tuning  # noqa: B018


def test_help_shows_the_functions_with_their_examples() -> None:
    program = "import captune, pydoc; print(pydoc.render_doc(captune, renderer=pydoc.plaintext))"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for text in ("tune(", "evaluate(", "score(", "compare(", "class Captioner", 'captune.tune("photos.yaml")'):
        assert text in completed.stdout


def test_without_torch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captune, "_has_torch", lambda: False)
    monkeypatch.delitem(vars(captune), "Captioner", raising=False)
    with pytest.raises(MissingExtraError, match=r"captune.Captioner needs the extra 'train'; install it with: pip"):
        captune.Captioner  # noqa: B018
    assert "Captioner" not in dir(captune)
    assert captune.score(["a dog"] * 2, ["a dog", "a cat"], "rouge-l").corpus["ROUGE-L"] == pytest.approx(0.75, abs=0.1)


def test_scoring_from_the_top_level_imports_neither_torch_nor_pandas() -> None:
    program = (
        "import captune, sys; captune.score(['a dog', 'a cat'], [['a dog'], ['one cat']]);"
        "print(*sorted({'torch', 'transformers', 'pandas', 'IPython', 'rich', 'PIL', 'matplotlib'} & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == []


def test_paths_may_be_text() -> None:
    """Public functions of the top level and of the rooms that users import from accept a path as text.

    Records are exempt: captune itself fills them.
    """
    wrong = []
    for room in ("api", "bulk", "captioner", "config", "data", "evaluation", "metrics", "report", "toy", "training"):
        face = import_module(f"captune.{room}")
        for name in face.__all__:
            for where, annotation in _annotations(getattr(face, name)):
                if not _accepts_text(annotation):
                    wrong.append(f"captune.{room}.{name}{where}: {annotation}")
    assert wrong == []


def _annotations(value: Any) -> list[tuple[str, str]]:
    """The parameters of a function, or of a class's public methods, with their annotations."""
    functions: list[tuple[str, Any]] = [("", value)] if inspect.isfunction(value) else []
    if inspect.isclass(value) and (not is_dataclass(value) or value.__name__ in OPTIONS):
        functions += [
            (f".{name}", getattr(member, "__func__", member))
            for name, member in vars(value).items()
            if (not name.startswith("_") or name in ("__init__", "__call__"))
            and inspect.isfunction(getattr(member, "__func__", member))
        ]
    return [
        (f"{name}({parameter})", str(annotation))
        for name, function in functions
        for parameter, annotation in inspect.get_annotations(function).items()
        if parameter != "return"
    ]


def _accepts_text(annotation: str) -> bool:
    """Whether every `Path` in an annotation is an alternative to `str`, also in sequences."""
    try:
        tree = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return True

    def wrong(node: ast.AST, text: bool) -> bool:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            parts = ast.unparse(node).replace(" ", "").split("|")
            return any(wrong(part, text or "str" in parts) for part in (node.left, node.right))
        if isinstance(node, ast.Subscript):
            if ast.unparse(node.value) == "Callable":
                return False
            return wrong(node.slice, False)
        if isinstance(node, ast.Tuple):
            return any(wrong(part, False) for part in node.elts)
        return isinstance(node, ast.Name) and node.id == "Path" and not text

    return not wrong(tree, False)


@pytest.mark.parametrize(
    ("annotation", "accepted"),
    [
        ("Path", False),
        ("str | Path", True),
        ("Path | None", False),
        ("Sequence[Path]", False),
        ("Sequence[str | Path] | None", True),
        ("Mapping[str, Path]", False),
        ("Callable[[Path], None]", True),
        ("int", True),
    ],
)
def test_annotations_are_understood(annotation: str, accepted: bool) -> None:
    assert _accepts_text(annotation) is accepted
