"""How often, and how fast, captune's PTB tokens are those of the Java tool.

    python benchmarks/tokens.py [--fuzz 100000] [--seed 0] [--jar stanford-corenlp-3.4.1.jar] [--json]

First the recorded outputs in `../shared`: the share of captions with equal tokens, file by file. Then, with a `java` on
the path and the jar (of an installed pycocoevalcap, or of `--jar`), the tool itself in this run: real captions as one
call, and fuzz strings made from the seed, also as one call, so that rules that look past a line's end are tried too.
The ratio is the tool's time over captune's on the real captions, the start of both processes left in.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from captune.metrics import ptb

ORACLE = Path(__file__).resolve().parent.parent.parent / "shared" / "captions" / "oracle"
JAR = "stanford-corenlp-3.4.1.jar"

# What the fuzz strings are glued from: words, numbers, what the web knows, marks. "_" is a blank inside a piece.
WORDS = """
    a b x A I p P no No man Dog DOG The the It st. Mr. mr Mrs. etc etc. Inc. U.S. u.s. U.S a.m. e.g. Ph.D. Calif. Jan.
    vs. al. Ave. messrs. can't cannot CANNOT gonna Wanna don't isn't n't 's 'S 'll 're 'd it's They've I'm o'clock
    O'Brien d'Angelo l'eau y'all ma'am 'em 'til 'tis 'Twas 'cause 'n' rock'n'roll ol' dunkin' c'mon c'est qu'il j'ai
    jack-o'-lantern dogs' well-known t-shirt. ex-U.S. and/or he/she a_b C++ C#
"""
NUMBERS = """
    0 1 5 12 20 90 123 555 1990 12345 1,000 1.5 .5 ,5 1/2 1_1/2 ½ 1⁄2 +1 -1 12:30 9/11/2001 555-1234 (555)_123-4567 1st
    5pm 1990s '90s '51 $5 US$5 C$10 £3 €4 5¢ 5% #1 4x4 747-400 no._5
"""
WEB = """
    http://a.com https://x.y/z?q=1 www.foo.com www.x foo.com +a.org foo.com/bar a@b.com me@ @user #tag file.txt 1a.jpg
    co.uk <b> </b> <br/> <a_href="x"> < > << <3 <!--_x_--> <me@x.com> &amp; &lt; &quot; &apos; &nbsp; &copy; &#39;
    &mdash; &eacute; AT&T a&b :) :-) ;) :D =P :( :'( >:( ^_^ (^_^) -_- >_< :))
"""
MARKS = """
    . , ; : ! ? ... .. .... … ' '' " "" ` `` “ ” ‘ ’ « » ‹ › „ ( ) [ ] { } - -- --- ----- – — ‐ \xad _ __ * ** \\ \\/ /
    | ~ ^ = + ++ # ## % $ @ ¥ ™ ° ² é É ñ ß ٠ 你好 🙂 ♥ \xa0 \u2003 \t \x00 \x07 \u200b \x85
"""


def fuzz(count: int, seed: int) -> list[str]:
    """Strings glued from pieces of every kind, with and without blanks, some with a letter changed."""
    source = random.Random(seed)
    kinds = [
        [re.sub("(?<=.)_(?=.)", " ", piece) for piece in text.split(" ") if piece.strip("\n ")]
        for text in (
            WORDS.replace("\n", " "),
            NUMBERS.replace("\n", " "),
            WEB.replace("\n", " "),
            MARKS.replace("\n", " "),
        )
    ]
    strings = []
    for _ in range(count):
        glued = ""
        for _ in range(source.choice((1, 2, 2, 3, 3, 4, 6))):
            piece = source.choice(source.choices(kinds, (40, 20, 15, 25))[0])
            if source.random() < 0.08:
                piece = piece.upper()
            if source.random() < 0.05:
                position = source.randrange(len(piece) + 1)
                piece = piece[:position] + source.choice(source.choice(kinds)) + piece[position:]
            glued += piece + source.choice(("", "", " ", " ", "  "))
        strings.append(glued)
    return strings


def recorded() -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Name, captions and filtered tokens of every recorded file."""
    for path in sorted(ORACLE.glob("tokens_*.dev.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        pairs = [(r["s"], r["t"]) if isinstance(r, dict) else (r[0], r[1]) for r in records]
        yield path.name.split(".")[0].removeprefix("tokens_"), [p[0] for p in pairs], [p[1] for p in pairs]


def java_lines(jar: Path, captions: list[str]) -> list[list[str]]:
    """The Java tool's tokens of one call, punctuation dropped, one list a line."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", newline="") as file:
        file.write("\n".join(captions))
        file.flush()
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        done = subprocess.run([*command, file.name], capture_output=True, check=True)
    lines = done.stdout.decode("utf-8").split("\n")[: len(captions)]
    return [[t for t in line.rstrip().split(" ") if t and t not in ptb.PUNCTUATION] for line in lines]


def find_jar(jar: Path | None) -> Path | None:
    """The jar of the command line, or the one inside an installed pycocoevalcap."""
    if jar is not None:
        return jar
    package = find_spec("pycocoevalcap")
    folders = package.submodule_search_locations if package and package.submodule_search_locations else []
    return next(
        (Path(folder) / "tokenizer" / JAR for folder in folders if (Path(folder) / "tokenizer" / JAR).is_file()), None
    )


def compare(name: str, captions: list[str], expected: list[list[str]], one_call: bool) -> dict[str, Any]:
    """Share of captions with the expected tokens, and the time of captune."""
    started = time.perf_counter()
    got = ptb.tokenize_call(captions) if one_call else ptb.tokenize_batch(captions)
    seconds = time.perf_counter() - started
    wrong = [c for c, g, e in zip(captions, got, expected, strict=True) if g != e]
    return {
        "data": name,
        "captions": len(captions),
        "identical": 1 - len(wrong) / max(1, len(captions)),
        "microseconds": round(seconds / max(1, len(captions)) * 1e6, 1),
        "seconds": seconds,
        "examples": wrong[:5],
    }


def main() -> None:
    """Compare with the recorded outputs and, where it is installed, with the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=100_000, help="fuzz strings to make and give to both tools")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jar", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not ORACLE.is_dir():
        sys.exit(f"the recorded outputs are not there: {ORACLE}")

    rows, captions = [], []
    for name, texts, expected in recorded():
        rows.append(compare(name, texts, expected, one_call=False))
        captions += [] if name == "fuzz" else [caption.replace("\n", " ") for caption in texts]
    jar = find_jar(options.jar)
    if jar and shutil.which("java"):
        rows.append(compare("fuzz, anew", strings := fuzz(options.fuzz, options.seed), java_lines(jar, strings), True))
        started = time.perf_counter()
        expected = java_lines(jar, captions)
        java_seconds = time.perf_counter() - started
        rows.append(compare("all real, one call", captions, expected, True))
        rows[-1]["ratio"] = round(java_seconds / rows[-1]["seconds"], 2)
    for row in rows:
        if options.json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            ratio = f"   {row['ratio']} times the speed of Java" if "ratio" in row else ""
            print(
                f"{row['data']:20} {row['captions']:8,} captions  {row['identical']:9.5%} identical"
                f"  {row['microseconds']:6.1f} us each{ratio}"
            )
            for caption in row["examples"]:
                print(f"    {caption!a}")


if __name__ == "__main__":
    main()
