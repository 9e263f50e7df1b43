"""Median smoothing: a probabilistic l2 certificate for any network (Chiang et al., NeurIPS 2020, arXiv 2007.03730).

The smoothed score at x is the median of S(x + σ·noise). Its value on B₂(x, ε) lies between the quantiles Φ(∓ε/σ) of S at x; order
statistics with binomial confidence bound those quantiles. What it certifies is the SMOOTHED detector's decision, with the
stated confidence: never to be mixed with deterministic certificates of the detector itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from certood.errors import CannotCertify, CertoodError
from certood.scores import Score

# The method's name, in settings and in records, whose decision is the smoothed detector's and whose score the network's.
SMOOTHING = "smoothing"
# Noisy images of every first batch of samples whose scores are computed alone as well.
COMPARED = 3


@dataclass(frozen=True)
class MedianSmoothing:
    """How to smooth: noise σ in pixels, samples per image, and the confidence of each image's certificate."""

    sigma: float = 0.12
    samples: int = 1000
    confidence: float = 0.999
    batch_size: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise CertoodError(f"expected a finite sigma > 0 in pixels, got {self.sigma}")
        if self.batch_size < 1:
            raise CertoodError(f"expected batches of at least 1 sample, got {self.batch_size}")
        if self.samples < 10:
            raise CertoodError(f"expected at least 10 samples, got {self.samples}")
        if not 0 < self.confidence < 1:
            raise CertoodError(f"expected 0 < confidence < 1, got {self.confidence}")

    def radius(
        self, model: torch.nn.Module, score: Score, threshold: float, image: Tensor, seed: int
    ) -> tuple[bool, float]:
        """The smoothed decision (accepted?) for an image (C, H, W), and its certified l2 radius in pixels, 0 if uncertain.

        With B samples above (or at most) γ of n, a one-sided Clopper–Pearson bound p of that share holds with the
        confidence; the decision of the median cannot change within σ·Φ⁻¹(p). The side is fixed by samples of its own, so that
        looking does not spend confidence.
        """
        generator = torch.Generator().manual_seed(seed)
        pilot = self._scores(model, score, image, max(10, self.samples // 10), generator)
        accepted = bool(pilot.median() <= threshold)
        scores = self._scores(model, score, image, self.samples, generator)
        count = int((scores <= threshold).sum() if accepted else (scores > threshold).sum())
        if not scores.isfinite().all() or count == 0:
            return accepted, 0.0
        share = float(stats.beta.ppf(1 - self.confidence, count, self.samples - count + 1))
        return accepted, max(0.0, self.sigma * float(stats.norm.ppf(share)))

    def quantile_bounds(
        self,
        model: torch.nn.Module,
        score: Score,
        image: Tensor,
        eps: Sequence[float],
        seed: int,
    ) -> list[tuple[float, float]]:
        """Bounds of the smoothed score on B₂(x, ε) for every ε, each with the confidence; infinite where samples are too few."""
        generator = torch.Generator().manual_seed(seed)
        ordered = self._scores(model, score, image, self.samples, generator).sort().values.tolist()
        if not all(math.isfinite(value) for value in ordered):
            return [(-math.inf, math.inf)] * len(eps)
        found = []
        for radius in eps:
            # P(Binomial(n, p) < k) small: the k-th smallest sample lies below the quantile p = Φ(−ε/σ) with the confidence, and
            # the k-th largest above the quantile 1 − p.
            rank = int(stats.binom.ppf(1 - self.confidence, self.samples, stats.norm.cdf(-radius / self.sigma)))
            found.append((ordered[rank - 1], ordered[-rank]) if rank >= 1 else (-math.inf, math.inf))
        return found

    def _scores(
        self, model: torch.nn.Module, score: Score, image: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        found = []
        with torch.no_grad():
            for start in range(0, count, self.batch_size):
                size = min(self.batch_size, count - start)
                # One by one, so that the samples are the same whatever the size of a batch.
                noise = torch.stack(
                    [torch.randn(image.shape, generator=generator, device="cpu") for _ in range(size)]
                ).to(image)
                # Noisy images are not clipped: clipping would change the smoothing distribution.
                noisy = image + self.sigma * noise
                found.append(score(model(noisy).double()))
                if start == 0:
                    alone = torch.cat([score(model(one).double()) for one in noisy[:COMPARED].split(1)])
                    _require_alike(found[0][:COMPARED], alone)
        return torch.cat(found)


def _require_alike(together: Tensor, alone: Tensor) -> None:
    """Raise CannotCertify where scores of a batch are not those of its images: samples would not be independent."""
    if not torch.allclose(together, alone, rtol=1e-2, atol=1e-2, equal_nan=True):
        apart = float((together - alone).abs().max())
        raise CannotCertify(
            f"the network mixes the images of a batch: scores of noisy images differ by {apart:.3g} from those of each on its own"
        )
