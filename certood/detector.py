"""A detector: a network, a score of its logits, and the threshold γ that accepts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from certood.data.source import ImageSource
from certood.data.splits import Split
from certood.errors import CheckpointError
from certood.inference import collect_logits, logits_of_batches
from certood.metrics import threshold_at_tpr
from certood.scores import Score, score_logits

CALIBRATION_BATCH = 512


@dataclass(frozen=True)
class Detector:
    """An OOD detector: a network in eval mode, a score of its logits, and the threshold γ that accepts.

    `input_shape` is (C, H, W) in pixels; `mean` and `std` are the network's own normalisation, for the record;
    `options` are those with which the architecture was built. With an absent class the last output is none of `classes`.
    `split` says which in-distribution images were trained on and which held out, where that is known.
    """

    model: nn.Module
    score: Score
    threshold: float | None
    architecture: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    absent_class: bool = False
    tpr: float = 0.95
    split: Split | None = None

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N,) of images (N, C, H, W) in [0, 1]; higher is more outlying; differentiable."""
        return score_logits(self.score, self.model(images), absent_class=self.absent_class)

    def accepts(self, images: Tensor) -> Tensor:
        """Whether each image is accepted as in-distribution, S(x) ≤ γ: bool (N,).

        Raises CheckpointError when the detector has no threshold.
        """
        if self.threshold is None:
            raise CheckpointError("this detector has no threshold γ; calibrate it with `certood evaluate --calibrate`")
        with torch.no_grad():
            return self.scores(images) <= self.threshold

    def calibrated(
        self,
        images: Tensor | ImageSource,
        tpr: float | None = None,
        *,
        batch_size: int = CALIBRATION_BATCH,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> "Detector":
        """The same detector with the γ that accepts the share `tpr` of these in-distribution images (default: its own `tpr`).

        The images are a set, or a tensor (N, C, H, W) in [0, 1]. They must be held out: neither trained on nor tested on.
        Raises DataError where a logit is not finite, CertoodError where a share makes no sense.
        """
        share = self.tpr if tpr is None else tpr
        if isinstance(images, Tensor):
            logits = logits_of_batches(self.model, images.split(batch_size), "images")
        else:
            logits = collect_logits(self.model, images, batch_size=batch_size, device=device, progress=progress)
        scores = score_logits(self.score, logits, absent_class=self.absent_class)
        return replace(self, threshold=threshold_at_tpr(scores.numpy(), share), tpr=share)
