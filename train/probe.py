"""What is measured after every epoch on held-out images."""

import math

import torch

from certood.data.source import to_pixels
from certood.inference import collect_logits
from certood.train.assembly import Training
from certood.train.penalty import gradient_norms

PROBE_IMAGES = 256


def probe(training: Training) -> tuple[float, float, float]:
    """Mean ‖∇ₓS‖₂ in eval mode on a fixed batch of held-out ID images and of auxiliary outliers, and accuracy.

    Accuracy is that on the validation images. Not a number: outliers where there are none, accuracy where nothing is classified.
    """
    network, device = training.network, training.fabric.device
    score = training.step.objective.score
    network.eval()
    validation = training.data.id.validation
    means = []
    for source in (validation, training.data.auxiliary):
        if source is None:
            means.append(math.nan)
            continue
        chosen = torch.linspace(0, len(source) - 1, min(len(source), PROBE_IMAGES)).long()
        means.append(gradient_norms(network, to_pixels(source.batch(chosen).to(device)), score).mean().item())
    if not training.recipe.objective.objective.classifies:
        return means[0], means[1], math.nan
    logits = collect_logits(network, validation, device=device)
    assert validation.labels is not None
    predicted = logits[:, : len(validation.classes)].argmax(1).cpu()
    return means[0], means[1], (predicted == validation.labels).double().mean().item()
