"""Time of `from captune import Captioner` and of its first model, next to the imports of torch and transformers.

    python benchmarks/import_time.py [--repeat 5] [--profile]

Each time is the median of new processes. `loading` is `Captioner.from_pretrained("toy")` after `import torch` and
`import transformers`, which imports what models need. `--profile` prints the slowest imports of that (-X importtime).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STATEMENTS = {
    "import torch": ("", "import torch"),
    "import transformers": ("import torch", "import transformers"),
    "import captune": ("", "import captune"),
    "captune.score": ("", "import captune; captune.score(['a dog', 'a cat'], ['one dog', 'a cat'])"),
    "from captune import Captioner": ("", "from captune import Captioner"),
    "loading": ("import torch, transformers", "from captune import Captioner; Captioner.from_pretrained('toy')"),
}
"""What is timed: the statements before, and those whose time counts."""


def seconds(before: str, timed: str) -> float:
    """Time of a statement in a new process."""
    program = f"import time\n{before}\nbegan = time.perf_counter()\n{timed}\nprint(time.perf_counter() - began)"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(completed.stdout.split()[-1])


def main() -> None:
    """Print a line for each statement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    for name, (before, timed) in STATEMENTS.items():
        times = [seconds(before, timed) for _ in range(arguments.repeat)]
        print(f"{name:<32} {statistics.median(times):7.3f} s   (after: {before or 'nothing'})", flush=True)
    if arguments.profile:
        command = [sys.executable, "-X", "importtime", "-c", "; ".join(STATEMENTS["loading"])]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
        rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
        slowest = sorted(((int(total), name) for _, total, name in rows[1:]), reverse=True)
        for microseconds, name in slowest[:30]:
            print(f"{microseconds / 1e6:7.3f} s {name}")


if __name__ == "__main__":
    main()
