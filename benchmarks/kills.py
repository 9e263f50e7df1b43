"""Does a command that is killed at any of its writes, given again, come to the result of an uninterrupted one?

Every command is recorded with a copy of its files before each write, rename and removal, with and without the end of what was
being written (tests/certood/kills.py). From each copy that differs from the others the command is given again, and its files
are compared with those of the uninterrupted command; nothing may be left over. Exit code 1 where anything was wrong.

    python benchmarks/kills.py --json kills.json
    python benchmarks/kills.py --only certify --every 10
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.certood.kills import SCENARIOS, killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="this command; may be repeated")
    parser.add_argument("--every", type=int, default=1, help="try one of so many places")
    parser.add_argument("--first", type=int, default=0, help="number of the first place, as wrong ones are printed")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| command | kills | that leave different files | tried | wrong | seconds |\n|---|---|---|---|---|---|")
    for name in arguments.only or SCENARIOS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = killed(name, Path(folder))
            places = found.places
            tried = [place for place in places if place >= arguments.first][:: arguments.every]
            if not tried:
                parser.error(f"{name} has no place from {arguments.first} on; its last one is {places[-1]}")
            wrong = 0
            for number, place in enumerate(tried, 1):
                problems = [found.continued(place), found.read(place) if name != "demo" else ""]
                wrong += any(problems)
                print(f"{name}: {number} of {len(tried)} tried, {wrong} wrong", file=sys.stderr, flush=True)
                for problem in filter(None, problems):
                    print(f"{name}, {place}, before {found.recorder.events[place]}: {problem}", file=sys.stderr)
        seconds = time.perf_counter() - began
        row = {"command": name, "kills": len(found.recorder.events), "different": len(places), "tried": len(tried)}
        rows.append(row | {"wrong": wrong, "seconds": seconds})
        print(f"| `{name}` | {row['kills']} | {len(places)} | {len(tried)} | {wrong} | {seconds:.0f} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + os.linesep, "utf-8")
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
