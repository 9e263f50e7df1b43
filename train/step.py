"""The whole forward part of a training step."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certood.errors import CertoodError
from certood.train.batch_statistics import Statistics, recorded_statistics
from certood.train.certified.bounding import CertifiedTraining
from certood.train.double_backward import ClosedForms
from certood.train.objectives import Objective
from certood.train.penalty import GradientPenalty, at_least_float32, gate_shares, gradient_term


class Terms(NamedTuple):
    """The loss and its parts, scalars; total = cross_entropy + λ_S·outlier + λ_∇·gradient + weight·certified."""

    total: Tensor
    cross_entropy: Tensor
    outlier: Tensor
    gradient: Tensor
    certified: Tensor


class TrainingStep(nn.Module):
    """The forward part of a step as one module, so that a data-parallel wrapper sees one forward and one backward.

    ID images and outliers go through ONE joint forward, and running statistics are updated once. `learned` holds the scalars
    that the objective learns; with `certified`, bounds over balls of the radius of the step enter the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        penalty: GradientPenalty,
        certified: CertifiedTraining | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.penalty = penalty
        self.certified = certified
        self.learned = nn.ParameterDict({name: torch.tensor(value) for name, value in objective.learned.items()})

    def forward(
        self, images_in: Tensor, labels: Tensor, images_out: Tensor | None, eps: float = 0.0, number: int = 0
    ) -> Terms:
        """Terms of ID images (N, C, H, W) with labels (N,), and outliers (M, C, H, W) or None; pixels in [0, 1].

        `eps` is the radius of the balls of certified training in pixels; at 0 there is no bound and no certified term. `number`
        is that of the step, from 0: a lazy gradient term is none in most, and counts for these in the others. Raises
        CertoodError for a finite difference through a network that draws random numbers.
        """
        objective, penalty = self.objective, self.penalty
        times = penalty.times(number)
        learned = dict(self.learned.items())
        images = images_in if images_out is None else torch.cat([images_in, images_out])
        certified = self.certified if images_out is not None and eps > 0 else None
        # Where outliers enter by their bounds alone, their values are not computed.
        bounds_alone = certified is not None and not certified.reads_clean_outliers and not times
        if times:
            images = images.detach().requires_grad_()
        statistics: Statistics = {}
        with self._differentiated(statistics, images.device) if times else nullcontext():
            logits = at_least_float32(self.model(images_in if bounds_alone else images))
        logits_in, logits_out = logits[: len(labels)], logits[len(labels) :]
        cross_entropy = F.cross_entropy(logits_in, labels) if objective.classifies else logits.new_zeros(())
        outlier = gradient = added = cross_entropy.new_zeros(())
        if len(images) > len(labels):
            scores_in = objective.trained_score(logits_in)
            scores_out = None if bounds_alone else objective.trained_score(logits_out)
            term = partial(objective.outlier_term, learned=learned)
            if certified is not None:
                inside, outside = certified.known(
                    objective.trained_score, images, len(labels), scores_in, scores_out, eps
                )
                outlier = certified.term.outlier_term(term, inside, outside)
                added = certified.term.added_term(inside, outside, eps)
            elif scores_out is not None:
                outlier = term(scores_in, scores_out)
        if times:
            scores = objective.score(logits)
            shares = gate_shares(scores.detach(), len(labels), objective.margins(learned))
            if shares.any():
                gradient = times * gradient_term(
                    penalty, self.model, objective.score, images, scores, shares, statistics
                )
        total = cross_entropy + objective.weight * outlier + penalty.weight * gradient
        if self.certified is not None:
            total = total + self.certified.term.weight * added
        return Terms(total, cross_entropy, outlier, gradient, added)

    @contextmanager
    def _differentiated(self, statistics: Statistics, device: torch.device) -> Iterator[None]:
        """How operations are differentiated in the forward whose gradient a gradient term takes."""
        if self.penalty.mode == "exact":
            with ClosedForms():
                yield
            return
        before = _random_states(device)
        with recorded_statistics(self.model, statistics):
            yield
        if not all(map(torch.equal, before, _random_states(device))):
            raise CertoodError(
                "a finite difference needs two forwards that agree, but this network draws random numbers in each (dropout, "
                "stochastic depth): switch that off, or use gradient.mode = 'exact'"
            )


def _random_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that a network on this device draws from."""
    own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state()]
    return [torch.get_rng_state(), *own]
