"""A verifier: what can be guaranteed about weights that somebody else has trained?

    cd examples && python verifier.py [FOLDER]

The weights are a plain PyTorch state dict of a network that certood does not know (`their_network.py`); the images are arrays.
In a shell, the first step is `certood inspect weights.pt --architecture their_network:make --classes 6 --input-shape 1,8,8`.
"""

import sys
from pathlib import Path

import numpy as np
import their_network
import torch
from sklearn.datasets import load_digits

import certood
from certood.analysis.bounds import list_operations


def main(folder: Path) -> None:
    """Inspect, calibrate, certify."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    inside, outside = images[digits.target < 6], images[digits.target >= 6]
    labels = torch.from_numpy(digits.target[digits.target < 6])
    weights = folder / "weights.pt"
    their_network.train_and_save(torch.from_numpy(inside[:700]), labels[:700], weights)

    # From here on it is the verifier's work. The score is the energy unless `score` says otherwise.
    detector = certood.load(
        weights,
        architecture="their_network:make",
        classes=6,
        input_shape=(1, 8, 8),
        mean=their_network.MEAN,
        std=their_network.STD,
    )
    found = list_operations(detector.model, torch.zeros(1, 1, 8, 8))
    refused = [operation.name for operation in found if operation.problem]
    print(f"{len(found)} operations, {len(refused)} cannot be bounded {refused or ''}")

    # γ accepts 95 % of held-out images of theirs: neither trained on nor certified below.
    detector = detector.calibrated(torch.from_numpy(inside[700:900]))
    print(f"γ = {detector.threshold:.4f}")

    for kind, part in (("id", inside[900:908]), ("ood", outside[:8])):
        for record in certood.certify(detector, part, kind=kind, eps=0.01, norm=np.inf):
            print(
                f"{kind:3} image {record.index}: S = {record.score:7.3f}, {record.verdict:9} at 0.01, "
                f"decision holds within {record.radius_certified:.4f}, changes within {record.radius_attack:.4f}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/verifier"))
