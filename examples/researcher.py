"""A researcher: does the gradient term enlarge the certified radius? Two recipes, one report.

    python examples/researcher.py [FOLDER]

Trains cross-entropy and GReg on the bundled digits (shortened), certifies a few test images of each, and writes
FOLDER/report.html. With your own data, change the recipe or its settings; see `certood train --help`.
"""

import json
import sys
from pathlib import Path

import certood


def main(folder: Path) -> None:
    """Train, certify and compare."""
    runs = [folder / "ce", folder / "greg"]
    for run in runs:
        # `resume` makes the script one that can be run again: what is trained already is kept.
        certood.train.fit(
            f"digits-{run.name}", run, settings=["training.epochs=8"], resume=run.exists(), progress=False
        )
        mean = json.loads((run / "evaluation.json").read_text("utf-8"))["scores"]["energy"]["mean"]
        records = certood.certify(run, eps=(0.02, 0.005), limit=2)
        kept = [record for record in records if record.verdict == "certified"]
        print(
            f"{run.name}: mean FPR95 {100 * mean['fpr95']:.1f} %, "
            f"decision certified at ε = 0.02 for {len(kept)} of {len(records)} images"
        )
    print("report:", certood.analysis.report(runs, folder / "report.html"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/researcher"))
