"""Print the measures of the package's structure: `python -m tests.measures` (or `python tests/measures.py`)."""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# Words that carry no meaning as identifiers; `docs/glossary.md` has the terms to use instead.
FORBIDDEN_IDENTIFIERS = frozenset(
    ["place", "found", "given", "chosen", "asked", "said", "told", "wanted", "whole", "together", "theirs", "own"]
)


@dataclass
class Module:
    """One file of the package: what it imports and which of its names other files can import."""

    name: str
    path: Path
    tree: ast.Module
    text: str
    # (module, name or None for the module itself)
    imports: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def is_face(self) -> bool:
        """Whether the file is the `__init__` of a room."""
        return self.path.name == "__init__.py"


class Package:
    """All files of captune and the arrows between them."""

    def __init__(self, root: Path = REPOSITORY / "captune") -> None:
        self.modules: dict[str, Module] = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            self.modules[name] = Module(name, path, ast.parse(text), text)
        for module in self.modules.values():
            module.imports = list(self._imports(module))

    def _imports(self, module: Module) -> Iterator[tuple[str, str | None]]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self.modules:
                        yield alias.name, None
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "captune":
                for alias in node.names:
                    dotted = f"{node.module}.{alias.name}"
                    if dotted in self.modules:
                        yield dotted, None
                    elif node.module in self.modules:
                        yield node.module, alias.name

    def origin(self, module: str, name: str | None) -> str:
        """The file that defines a name which another file imports, seen through faces."""
        seen = set()
        while name is not None and self.modules[module].is_face and module not in seen:
            seen.add(module)
            sources = [
                (target, inner)
                for target, inner in self.modules[module].imports
                if inner == name or (inner is None and target.rsplit(".", 1)[-1] == name)
            ]
            if not sources:
                lazy = re.search(rf'"{name}":\s*"(captune[\w.]*)"', self.modules[module].text)
                if lazy and lazy.group(1) in self.modules:
                    module = lazy.group(1)
                    continue
                break
            module, name = sources[0]
        return module

    def circles(self) -> list[list[str]]:
        """Groups of files that need each other, an import inside a function or for types only included."""
        graph = {name: {target for target, _ in module.imports} - {name} for name, module in self.modules.items()}
        return sorted(circles(graph), key=len, reverse=True)

    def importers(self) -> dict[str, set[str]]:
        """For each file that is not a face the files that import it, directly or through a face."""
        users: dict[str, set[str]] = {name: set() for name, module in self.modules.items() if not module.is_face}
        for name, module in self.modules.items():
            if module.is_face:
                continue
            for target, inner in module.imports:
                origin = self.origin(target, inner)
                if origin in users and origin != name:
                    users[origin].add(name)
        return users

    def room(self, module: str) -> str:
        """The room (folder or single file directly below `captune/`) of a file."""
        parts = module.split(".")
        return parts[1] if len(parts) > 1 else ""

    def past_faces(self) -> list[tuple[str, str]]:
        """Imports of another room's inner file: (importer, imported file)."""
        bypasses = []
        for name, module in self.modules.items():
            for target, _ in module.imports:
                inner = target.count(".") >= 2 and not self.modules[target].is_face
                if inner and self.room(target) != self.room(name):
                    bypasses.append((name, target))
        return bypasses


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components with more than one member (Tarjan, iterative)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    components: list[list[str]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(sorted(graph[root])))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, successors = work[-1]
            for successor in successors:
                if successor not in index:
                    index[successor] = low[successor] = len(index)
                    stack.append(successor)
                    on_stack.add(successor)
                    work.append((successor, iter(sorted(graph[successor]))))
                    break
                if successor in on_stack:
                    low[node] = min(low[node], index[successor])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.remove(member)
                        component.append(member)
                        if member == node:
                            break
                    if len(component) > 1:
                        components.append(sorted(component))
    return components


def code_lines(text: str) -> int:
    """Lines that hold code: without blank lines, comments and docstrings."""
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def bound_names(tree: ast.Module) -> Counter[str]:
    """How often each name is bound: variables, arguments, functions, classes, attributes, imports under a new name."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] += 1
        elif isinstance(node, ast.arg):
            names[node.arg] += 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] += 1
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names[node.attr] += 1
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names[node.name] += 1
        elif isinstance(node, ast.alias) and node.asname:
            names[node.asname] += 1
    return names


def forbidden(tree: ast.Module) -> Counter[str]:
    """Forbidden identifiers that a file binds, in any case, leading underscores left out."""
    return Counter(
        {name: n for name, n in bound_names(tree).items() if name.strip("_").lower() in FORBIDDEN_IDENTIFIERS}
    )


def forbidden_by_file(root: Path = REPOSITORY) -> dict[str, dict[str, int]]:
    """Forbidden identifiers of the package, the tests, the benchmarks and all scripts, by file."""
    folders = ("captune", "tests", "benchmarks", "tools", "eval_scripts")
    paths = [*root.glob("*.py"), *chain.from_iterable((root / folder).rglob("*.py") for folder in folders)]
    counts = {path: forbidden(ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(paths)}
    return {path.relative_to(root).as_posix(): dict(names) for path, names in counts.items() if names}


def main() -> None:
    package = Package()
    lengths = [len(module.text.splitlines()) for module in package.modules.values()]
    importers = package.importers()
    single = sorted(name for name, users in importers.items() if len(users) == 1)
    bound = sum(count for names in forbidden_by_file().values() for count in names.values())
    crossing = [
        (name, target)
        for name, module in package.modules.items()
        for target, _ in module.imports
        if package.room(target) != package.room(name)
    ]
    print(f"files in captune/                 {len(lengths):>7,}")
    print(f"raw lines                         {sum(lengths):>7,}")
    print(f"code lines                        {sum(code_lines(m.text) for m in package.modules.values()):>7,}")
    print(f"median lines of a file            {statistics.median(lengths):>7,.0f}")
    print(f"largest file                      {max(lengths):>7,}")
    print(f"circles between files             {len(package.circles()):>7,}")
    print(f"files with exactly one importer   {len(single):>7,}")
    print(f"imports that go past a face       {len(package.past_faces()):>7,} of {len(crossing):,}")
    print(f"forbidden identifiers             {bound:>7,}")
    for circle in package.circles():
        print("circle:", ", ".join(name.removeprefix("captune.") for name in circle))


if __name__ == "__main__":
    main()
