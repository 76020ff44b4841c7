"""Install every extra from a built wheel into a fresh environment, import what it brings, and use it once.

    make dist
    python tools/check_extras.py dist/captune-*.whl [--extra train --extra zh] [--python python3.12]

Each environment is a folder in the temporary directory, deleted before the next extra. A line shows the number of
installed distributions with their size, the seconds of the installation and of importing the libraries, and the command
that used the extra; exit code 1 if an extra failed. pip resolves the newest releases, as for a user; only torch is
restricted (`--constraint`), since its other builds take gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

__all__ = ["USES", "Row", "check_extra", "extras_of"]

_SCORE = "captune score -r references.json -p predictions.json"
_PHOTO = "from PIL import Image; Image.new('RGB', (64, 64), 'green').save('photo.png')"
USES: dict[str, tuple[str, str]] = {
    "": ("", _SCORE),
    "train": (_PHOTO, "captune caption toy photo.png"),
    "data": (
        f"{_PHOTO}; import pyarrow as pa, pyarrow.parquet as pq; "
        "pq.write_table(pa.table({'image': ['photo.png'], 'caption': ['A green square.']}), 'table.parquet')",
        "captune prepare table table.parquet --out manifest.jsonl",
    ),
    "heic": (
        "from PIL import Image; import pillow_heif; pillow_heif.register_heif_opener(); "
        "Image.new('RGB', (64, 64), 'green').save('photo.heic'); open('manifest.jsonl', 'w').write("
        """'{"id": "1", "image": "photo.heic", "captions": ["A green square."], "split": "train"}')""",
        "captune check manifest.jsonl",
    ),
    "java": ("", f"{_SCORE} --metrics meteor"),
    "notebook": ("import captune; captune.score(['a', 'b'], ['a', 'b']).to_dataframe()", "captune --version"),
    "zh": ("", f"{_SCORE} --tokenize zh-jieba"),
    "ja": ("", f"{_SCORE} --tokenize ja-mecab"),
    "ko": ("", f"{_SCORE} --tokenize ko-mecab"),
    "th": ("", f"{_SCORE} --tokenize th-newmm"),
    "intl": ("", f"{_SCORE} --tokenize intl"),
}
"""A Python statement and a command that use an extra; of the other extras, only the imports are checked."""

_IMPORTS = """
import importlib, json, sys, time, warnings
from importlib import metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
warnings.simplefilter("ignore")
extra, modules = sys.argv[1], {}
for module, distributions in metadata.packages_distributions().items():
    for distribution in distributions:
        if not module.startswith("_") and module.isidentifier():
            modules.setdefault(canonical(distribution), set()).add(module)
libraries = [Requirement(text) for text in metadata.requires("captune")]
names = {canonical(r.name) for r in libraries if not r.marker or r.marker.evaluate({"extra": extra})}
began, failures = time.perf_counter(), {}
for name in sorted(names):
    candidates = modules.get(name, set())
    # A distribution may also install tests or examples at the top level.
    for module in [m for m in candidates if canonical(m) == name] or sorted(candidates - {"tests", "examples"}):
        try:
            importlib.import_module(module)
        except Exception as error:
            failures[module] = f"{type(error).__name__}: {error}"
print(json.dumps({"seconds": time.perf_counter() - began, "failures": failures}))
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What the installation of one extra showed.

    Attributes:
        extra: its name; empty for the package without extras.
        failure: why it failed, or empty.
        distributions: number of installed distributions, captune included.
        size: of the environment's libraries, in bytes.
        install_seconds: of `pip install`, with pip's cache as it was.
        import_seconds: of importing every library that the extra and the package require.
        command: that used the extra, or empty.
    """

    extra: str
    failure: str
    distributions: int
    size: int
    install_seconds: float
    import_seconds: float
    command: str

    def __str__(self) -> str:
        return (
            f"{self.extra or '(none)':<10} {'failed' if self.failure else 'ok':<7} {self.distributions:>5} "
            f"{self.size / 2**20:>7.0f} MB {self.install_seconds:>7.0f} s {self.import_seconds:>7.1f} s  "
            f"{self.failure or self.command or 'imports'}"
        )


def extras_of(wheel: Path) -> list[str]:
    """Names of the extras that the metadata of a wheel list."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Provides-Extra", [])


def check_extra(wheel: Path, extra: str, *, python: str, constraint: Sequence[str]) -> Row:
    """Install an extra into a fresh environment, import its libraries and run its command.

    Args:
        wheel: of captune.
        extra: name of the extra; empty for none.
        python: the interpreter that creates the environment.
        constraint: requirements that restrict what pip chooses.

    Returns:
        The row of the extra; what fails is in it and not raised.
    """
    with tempfile.TemporaryDirectory(prefix="captune-extra-") as name:
        folder = Path(name)
        environment = folder / "environment"
        program = environment / "bin" / "python"
        (folder / "constraint.txt").write_text("\n".join(constraint), encoding="utf-8")
        for file, caption in (("references.json", ["a dog"]), ("predictions.json", "a dog")):
            (folder / file).write_text(json.dumps({"1": caption, "2": caption}), encoding="utf-8")
        requirement = f"captune[{extra}] @ {wheel.resolve().as_uri()}" if extra else str(wheel.resolve())
        install = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        statement, command = USES.get(extra, ("", ""))
        began, seconds, failure = time.perf_counter(), 0.0, _failure([python, "-m", "venv", environment], folder)[1]
        if not failure:
            began = time.perf_counter()
            failure = _failure([*install, "--constraint", "constraint.txt", requirement], folder)[1]
        installed = time.perf_counter() - began
        if not failure:
            # `packaging` reads the requirements; most environments have it already.
            failure = _failure([*install, "--target", folder / "packaging", "packaging"], folder)[1]
        if not failure:
            printed, failure = _failure([program, "-c", _IMPORTS, extra], folder, PYTHONPATH=str(folder / "packaging"))
            if not failure:
                report = json.loads(printed.splitlines()[-1])
                seconds = report["seconds"]
                failure = "; ".join(f"{module}: {reason}" for module, reason in report["failures"].items())
        if not failure and statement:
            failure = _failure([program, "-c", statement], folder)[1]
        if not failure and command:
            failure = _failure([environment / "bin" / "captune", *command.split()[1:]], folder)[1]
        # Without pip and setuptools, which are in every environment.
        (libraries,) = environment.glob("lib/python*/site-packages")
        entries = [entry for entry in libraries.iterdir() if not re.match("pip|setuptools|pkg_resources", entry.name)]
        files = [file for entry in entries for file in ([entry] if entry.is_file() else entry.rglob("*"))]
        size = sum(file.stat().st_size for file in files if file.is_file())
        count = sum(entry.name.endswith(".dist-info") for entry in entries)
        return Row(extra, failure, count, size, installed, seconds, command)


def _failure(command: Sequence[object], folder: Path, **environment: str) -> tuple[str, str]:
    """Output of a command, and the last line of its messages if it failed."""
    # Neither this checkout nor the user's packages: only what the wheel brings.
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    variables |= {"PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    try:
        done = subprocess.run(
            [os.fspath(word) if isinstance(word, Path) else str(word) for word in command],
            cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=1800,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    messages = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    reason = re.sub(r"\s+", " ", " ".join(messages[-3:]))[-300:] or "no message"
    return done.stdout, "" if done.returncode == 0 else reason


def main() -> None:
    """Check the extras and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--extra", action="append", help="check this extra only; can be repeated")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environments")
    parser.add_argument("--constraint", action="append", default=["torch==2.13.0"])
    arguments = parser.parse_args()
    version = subprocess.run([arguments.python, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{arguments.wheel.name} on {version}, {', '.join(arguments.constraint)}")
    print(f"{'extra':<10} {'result':<7} {'dists':>5} {'size':>10} {'install':>9} {'import':>9}  use", flush=True)
    failed = []
    for extra in arguments.extra or ["", *extras_of(arguments.wheel)]:
        row = check_extra(arguments.wheel, extra, python=arguments.python, constraint=arguments.constraint)
        print(row, flush=True)
        failed += [extra] if row.failure else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
