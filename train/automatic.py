"""Numbers that a recipe leaves to its starting network: margins and λ_∇ that are "auto".

A margin is the median of the scores, so that the hinge of the objective acts on half of the images at the start, and the gates
of the gradient term are open for the others. λ_∇ is such that the gradient term has a stated share of the norm of the parameter
gradient of the rest of the loss. Both depend on the starting network, the images and `data.split_seed`, not on `run.seed`:
runs of several seeds are one kind.
"""

import copy
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from certood.data.auxiliary import draw
from certood.data.source import ImageSource, to_pixels
from certood.devices import chosen_precision, resolve_device, short_products
from certood.errors import RecipeError, RunDirectoryError
from certood.inference import collect_logits
from certood.models.classifier import Classifier
from certood.runs import RunDirectory
from certood.runs.kinds import automatic
from certood.train.batch_statistics import fix_statistics
from certood.train.batches import plan_epoch, seeded_generator
from certood.train.candidates import seen_by
from certood.train.penalty import GradientPenalty, double_backward_explained
from certood.train.recipe import Recipe, make_recipe
from certood.train.run_directory import read_run_recipe
from certood.train.setup import TrainingData
from certood.train.step import TrainingStep

MOST_IMAGES = 2000
BATCHES = 8
# About λ_∇ = 0.01 of a CIFAR-10 ResNet-20, which lowers gradient norms by a third and costs nothing there; five times as much
# costs accuracy and the AUROC of held-out outliers, there and with a DenseNet (docs/benchmarks.md).
SHARE = 0.06
MARGINS = ("objective.margin_in", "objective.margin_out")
WEIGHT = "gradient.weight"
PRECISION = "run.precision"

Record = dict[str, dict[str, Any]]


def settle(recipe: Recipe, data: TrainingData, network: Classifier, device: torch.device) -> Record:
    """The numbers for what the recipe leaves to its network, which is not changed: `value` by key, and how it came about.

    Raises RecipeError where the network scores outliers no higher than ID images, or no gate of the gradient term is open.
    """
    record: Record = {}
    if not recipe.automatic:
        return record
    network = copy.deepcopy(network).to(device)
    if recipe.model.fixed_statistics:
        fix_statistics(network)
    for key, source in zip(MARGINS, _images(recipe, data), strict=True):
        if key in recipe.automatic:
            record[key] = _margin(recipe, source, network, device)
    if record:
        _require_order(recipe, record)
    settled = with_numbers(recipe, record)
    if WEIGHT in recipe.automatic:
        record[WEIGHT] = _weight(settled, data, network, device)
    return record


def settle_precision(recipe: Recipe, recorded: Mapping[str, Mapping[str, Any]]) -> tuple[Recipe, Record]:
    """The recipe with a precision, and how "auto" came to be that: as `recorded`, or by what the device is fast at.

    Raises DeviceError for a device that is not there.
    """
    if recipe.run.precision != "auto":
        return recipe, {}
    device = resolve_device(recipe.run.device)
    found = recorded.get(PRECISION) or {
        "value": chosen_precision("auto", device),
        "device": short_products(device) or f"{device.type} without fast products of bfloat16",
    }
    changed = make_recipe(recipe.to_toml(), changes={PRECISION: found["value"]})
    return changed, {PRECISION: dict(found)}


def with_numbers(recipe: Recipe, record: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with these numbers in the place of what is "auto"."""
    changes = {key: record[key]["value"] for key in recipe.automatic if key in record}
    return make_recipe(recipe.to_toml(), changes=changes) if changes else recipe


def explain_run(run: RunDirectory) -> list[str]:
    """How the numbers of a run came about that were asked for as "auto", a sentence each, or that there are none.

    Raises RunDirectoryError where there is no recipe, or it does not read.
    """
    if not run.recipe.is_file():
        raise RunDirectoryError(
            f"the folder {run.folder.resolve()} has no {run.recipe.name}: it is no run that certood trained"
        )
    found = explanation(read_run_recipe(run), automatic(run.recipe_tables()))
    return found or [f'Every number of {run.recipe} was given; none was "auto".']


def explanation(recipe: Recipe, record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How the numbers of a record came about, a sentence each."""
    network = recipe.training.init
    lines = []
    if PRECISION in record:
        lines.append(f"{PRECISION} = {record[PRECISION]['value']}: {record[PRECISION]['device']}.")
    for key in MARGINS:
        if key in record:
            found = record[key]
            low, high = found["lower_quartile"], found["upper_quartile"]
            low, high = (
                _rounded_within(value, min(found["value"] - low, high - found["value"])) for value in (low, high)
            )
            lines.append(
                f"{key} = {found['value']!r}: the median {found['score']} of {found['images']} images of {found['set']}, by "
                f"{network}; half of them lie between {low!r} and {high!r}."
            )
    if WEIGHT in record:
        found = record[WEIGHT]
        lines.append(
            f"{WEIGHT} = {found['value']:g}: with it the gradient term has {found['share']:g} of the parameter gradient of the "
            f"rest of the loss, by {network}; their l2 norms are {found['norm_gradient_term']:.4g} (for λ_∇ = 1) and "
            f"{found['norm_rest']:.4g}, means of {found['batches']} batches of {recipe.training.batch_size} ID images."
        )
    return lines


def _images(recipe: Recipe, data: TrainingData) -> tuple[ImageSource, ImageSource]:
    """At most 2,000 validation images, spread evenly, and as many auxiliary outliers, held-out ones where there are some.

    Outliers are drawn by the weights of their sets, as training draws them.
    """
    validation = data.id.validation
    spread = torch.linspace(0, len(validation) - 1, min(len(validation), MOST_IMAGES)).long()
    outliers = data.auxiliary_validation or data.auxiliary
    assert outliers is not None, "a recipe with 'auto' names outliers"
    drawn = draw(outliers.pools, min(len(outliers), MOST_IMAGES), seeded_generator(recipe.data.split_seed, 6))
    return validation.subset(spread), outliers.subset(drawn)


def _margin(recipe: Recipe, source: ImageSource, network: Classifier, device: torch.device) -> dict[str, Any]:
    score = recipe.objective.objective.score
    values = score(collect_logits(network, source, device=device))
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()
    return {
        "value": _rounded_within(median, min(median - low, high - median)),
        "score": score.label,
        "set": source.name,
        "images": len(source),
        "lower_quartile": low,
        "upper_quartile": high,
    }


def _require_order(recipe: Recipe, record: Record) -> None:
    objective = recipe.objective.objective
    inside, outside = (
        record[key]["value"] if key in record else given
        for key, given in zip(MARGINS, (objective.margin_in, objective.margin_out), strict=True)
    )
    if inside is not None and outside is not None and inside >= outside:
        raise RecipeError(
            f"margins of 'auto' would be m_in = {inside:g} and m_out = {outside:g}, for {recipe.training.init} scores auxiliary "
            "outliers no higher than ID images: give objective.margin_in and objective.margin_out as numbers"
        )


def _weight(recipe: Recipe, data: TrainingData, network: Classifier, device: torch.device) -> dict[str, Any]:
    """λ_∇ from steps as training would begin with, on images that are not augmented, without its certified terms."""
    penalty = GradientPenalty(1.0, recipe.gradient.mode, recipe.gradient.step)
    step = TrainingStep(network, recipe.objective.objective, penalty).to(device).train()
    weights = [part for part in network.parameters() if part.requires_grad]
    rest, term = [], []
    for images_in, labels, images_out in _batches(recipe, data, network, device):
        terms = step(images_in, labels, images_out)
        rest.append(_norm(terms.cross_entropy + recipe.objective.objective.weight * terms.outlier, weights))
        term.append(_norm(terms.gradient, weights))
    if not fmean(term):
        raise RecipeError(
            f"gradient.weight = 'auto': no gate of the gradient term is open for {recipe.training.init} with the margins of the "
            "recipe, so that there is nothing to weigh: change objective.margin_in or margin_out, or give a number"
        )
    return {
        "value": _rounded(SHARE * fmean(rest) / fmean(term), 3),
        "share": SHARE,
        "norm_rest": fmean(rest),
        "norm_gradient_term": fmean(term),
        "batches": len(term),
    }


def _batches(
    recipe: Recipe, data: TrainingData, network: Classifier, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """ID images with labels, and the outliers that the recipe's sampler picks by the starting network, in pixels."""
    seed, size, train, outliers = recipe.data.split_seed, recipe.training.batch_size, data.id.train, data.auxiliary
    assert outliers is not None
    assert train.labels is not None
    plan = plan_epoch(
        seed,
        0,
        images=len(train),
        batch_size=size,
        steps=min(BATCHES, len(train) // size),
        auxiliary=outliers.pools,
        candidates=recipe.sampler.candidates * size,
    )
    assert plan.candidate_indices is not None
    sampler, score = recipe.sampler.sampler, recipe.objective.objective.score
    generator = seeded_generator(seed, 7, device=device)
    for indices, candidates in zip(plan.id_indices, plan.candidate_indices, strict=True):
        images_in = to_pixels(train.batch(indices).to(device))
        pool = to_pixels(outliers.batch(candidates).to(device))
        scores, features, id_features = seen_by(sampler, network, images_in, pool, score)
        picked = sampler(scores, features, recipe.sampler.outliers * size, generator, id_features)
        yield images_in, train.labels[indices].to(device), pool[picked]


def _norm(term: Tensor, weights: list[torch.nn.Parameter]) -> float:
    """‖∂term/∂weights‖₂; 0 where it does not depend on them."""
    if not term.requires_grad:
        return 0.0
    with double_backward_explained():
        found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
    squares = [part.cpu().double().square().sum() for part in found if part is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _rounded_within(value: float, spread: float) -> float:
    """A score to four digits, or as many more as keep it in its place among scores of that spread."""
    return next(
        (found for digits in range(4, 17) if abs((found := _rounded(value, digits)) - value) <= spread / 100), value
    )


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
