"""Picking outliers: a pool of candidates is scored by the network, and a sampler picks those that enter the step."""

import torch
from lightning_fabric import Fabric
from torch import Tensor

from certood.data.source import to_pixels
from certood.inference import forward_batch
from certood.models.classifier import Classifier
from certood.scores import Score
from certood.train.assembly import Training
from certood.train.batches import own_share
from certood.train.samplers import Sampler


def pick_outliers(training: Training, own_images: Tensor, own_pool: Tensor, generator: torch.Generator) -> Tensor:
    """This process's share of the picked outliers (M, C, H, W), of its share of the candidates as bytes, augmented.

    `own_images` (N, C, H, W) are its ID images of the step in pixels, which some samplers look at. Every process scores its own
    candidates and all pick the same; what is picked is what was scored, in the same view.
    """
    fabric, sampler, recipe = training.fabric, training.sampler, training.recipe
    count = recipe.sampler.outliers * recipe.training.batch_size
    score = training.step.objective.score
    with fabric.autocast():
        own = seen_by(sampler, training.network, own_images, to_pixels(own_pool), score)
    scores, features, id_features = (None if part is None else _gathered(fabric, part) for part in own)
    assert scores is not None
    picked = sampler(scores, features, count, generator, id_features)
    if fabric.world_size > 1:
        picked = fabric.broadcast(picked)
    return _gathered(fabric, own_pool)[own_share(picked, fabric.global_rank, fabric.world_size)]


def seen_by(
    sampler: Sampler, model: Classifier, images_in: Tensor, pool: Tensor, score: Score
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a sampler looks at: scores (n,) and features (n, F) of candidates, and features (N, F) of ID images, all in pixels.

    What it does not look at is not computed: zeros for scores, None for features.
    """
    if not sampler.needs_scores:
        return torch.zeros(len(pool), device=pool.device), None, None
    scores, features = score_candidates(model, pool, score)
    if not sampler.needs_id_features:
        return scores, features, None
    return scores, features, score_candidates(model, images_in, score)[1]


def score_candidates(model: Classifier, images: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """Scores (n,) and penultimate features (n, F) of candidates (n, C, H, W), in eval mode and without gradients.

    The network is left in the mode in which it was found.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = images.split(forward_batch(images.shape[1:], images.device))
        features = torch.cat([model.features(part) for part in parts]).float()
        scores = score(model.head(features).float())
    model.train(training)
    return scores, features


def _gathered(fabric: Fabric, own: Tensor) -> Tensor:
    """The shares of all processes, one after the other, as every process's candidates stand in the global pool."""
    if fabric.world_size == 1:
        return own
    gathered = fabric.all_gather(own)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)
