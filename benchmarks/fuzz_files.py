"""Many damaged files of a run: each must be read, or refused by one error; everything else is printed with its seed.

Exit code 1 where anything was wrong.

python benchmarks/fuzz_files.py --cases 2000 --json fuzz.json
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.certood.damaged_files import READERS, outcome
from tests.certood.test_fuzz_files import make_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="damaged files per reader")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run")
        for reader in READERS:
            counts: Counter[str] = Counter()
            slowest = 0.0
            for seed in range(arguments.first, arguments.first + arguments.cases):
                began = time.perf_counter()
                try:
                    counts[outcome(run, reader, seed)] += 1
                except Exception as error:
                    counts["wrong"] += 1
                    print(f"{reader}, seed {seed}: {type(error).__name__}: {error}", file=sys.stderr)
                slowest = max(slowest, time.perf_counter() - began)
            rows.append(
                {"reader": reader, **{key: counts[key] for key in ("read", "refused", "wrong")}, "slowest_s": slowest}
            )
    print("| reader | read | refused | wrong | slowest |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['reader']} | {row['read']} | {row['refused']} | {row['wrong']} | {row['slowest_s']:.2f} s |")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
