"""What is measured after every epoch on held-out images."""

import math

import torch

from certood.data.source import to_pixels
from certood.inference import collect_logits, forward_batch
from certood.train.assembly import Training
from certood.train.penalty import gradient_norms

PROBE_IMAGES = 256


def probe(training: Training) -> tuple[float, float, float]:
    """Mean ‖∇ₓS‖₂ in eval mode on fixed held-out ID images and auxiliary outliers, and accuracy.

    Accuracy is that on the validation images. Not a number: outliers where there are none, accuracy where nothing is classified.
    """
    network, device = training.network, training.fabric.device
    score = training.step.objective.score
    network.eval()
    validation = training.data.id.validation
    # What fits into a step of training fits here too.
    own_share = training.recipe.training.batch_size // training.fabric.world_size
    means = []
    for source in (validation, training.data.auxiliary):
        if source is None:
            means.append(math.nan)
            continue
        chosen = torch.linspace(0, len(source) - 1, min(len(source), PROBE_IMAGES)).long()
        images = to_pixels(source.batch(chosen).to(device))
        norms = [
            gradient_norms(network, part, score)
            for part in images.split(min(own_share, forward_batch(source.shape, device)))
        ]
        means.append(torch.cat(norms).mean().item())
    if not training.recipe.objective.objective.classifies:
        return means[0], means[1], math.nan
    logits = collect_logits(network, validation, device=device)
    assert validation.labels is not None
    predicted = logits[:, : len(validation.classes)].argmax(1).cpu()
    return means[0], means[1], (predicted == validation.labels).double().mean().item()
