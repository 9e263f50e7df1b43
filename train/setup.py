"""From a recipe to the parts of a run: device, image sets and network."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from certood.checkpoints import is_onnx, is_own, load_checkpoint, load_foreign, require_normalisation
from certood.data import IdSplits, Split, load_id, load_set, seen_in_training
from certood.data.auxiliary import AuxiliarySet, joined
from certood.data.overlap import require_disjoint
from certood.data.source import ImageSource, require_same_shape, to_pixels
from certood.data.splits import first_places
from certood.detector import Detector
from certood.devices import chosen_precision, resolve_device
from certood.errors import ArchitectureError, CheckpointError, DataError
from certood.models import build_model
from certood.models.catalogue import runs_user_code
from certood.models.classifier import Classifier
from certood.runs import RunDirectory
from certood.runs.identity import weights_hash
from certood.train.batches import seeded_generator, steps_in_epoch
from certood.train.initialisation import initialise_for_bounds
from certood.train.recipe import Recipe
from certood.train.recipe_tables import RunSection
from certood.train.recipes import recipe_names

NORMALISATION_IMAGES = 10_000


@dataclass(frozen=True)
class TrainingData:
    """The image sets of a recipe, all of one shape."""

    id: IdSplits
    auxiliary: AuxiliarySet | None
    auxiliary_validation: AuxiliarySet | None
    ood: Mapping[str, ImageSource]

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every set by role or name."""
        named: dict[str, ImageSource] = {
            "id-train": self.id.train,
            "id-validation": self.id.validation,
            "id-test": self.id.test,
        }
        if self.auxiliary is not None:
            named |= {f"auxiliary/{part.name}": part for part in self.auxiliary.parts}
        if self.auxiliary_validation is not None:
            named |= {f"auxiliary-validation/{part.name}": part for part in self.auxiliary_validation.parts}
        return {name: source.fingerprint for name, source in {**named, **self.ood}.items()}


def build_fabric(run: RunSection) -> Fabric:
    """Lightning Fabric for the recipe's device, or for the processes that torchrun has started.

    Raises DeviceError where the device is not there.
    """
    device = resolve_device(run.device)
    devices: int | list[int] = run.devices
    nodes = run.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif device.index is not None and devices == 1:
        devices = [device.index]
    several = nodes > 1 or (isinstance(devices, int) and devices > 1)
    return Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if several else "auto",
        precision=chosen_precision(run.precision, device),
    )


def require_start(recipe: Recipe) -> None:
    """Raise CheckpointError where the recipe starts from a checkpoint that is not there, with the ways to have one."""
    start = recipe.training.init
    if start is None or (RunDirectory(start).checkpoint if start.is_dir() else start).exists():
        return
    elsewhere = "" if start == Path("runs") / start.name else f" --out {start}"
    make = f"make it with `certood train {start.name}{elsewhere}`, " if start.name in recipe_names() else ""
    raise CheckpointError(
        f"recipe {recipe.recipe!r} starts from the checkpoint of {start}, which is not there: {make}name another with "
        "--init PATH, or train from scratch with --set training.init="
    )


def load_training_data(recipe: Recipe, recorded: Split | None = None) -> TrainingData:
    """Every image set that the recipe names; raises DataError where one is missing or they do not fit together.

    Where the ID images are those of a `recorded` split, they are divided as it has them.
    """
    data = recipe.data
    splits = load_id(
        data.id,
        root=data.root,
        test=data.id_test,
        validation=data.validation if data.validation < 1 else int(data.validation),
        seed=data.split_seed,
        size=data.size,
        recorded=recorded,
    )
    if len(splits.train.classes) < 2:
        raise DataError(
            f"{data.id} has {len(splits.train.classes)} class(es); "
            "a classifier needs at least 2 in-distribution classes"
        )
    outliers = [load_set(item.set, root=data.root, split="train", size=data.size) for item in data.auxiliary]
    ood = {name: load_set(name, root=data.root, split="test", size=data.size) for name in data.ood}
    require_same_shape([splits.train, splits.validation, splits.test, *outliers, *ood.values()])
    require_disjoint(
        splits.roles | {"auxiliary outliers": outliers, "test outliers": [*ood.values()]}, data.allow_shared
    )
    auxiliary, held_out = None, None
    if outliers:
        weights = [item.weight for item in data.auxiliary]
        auxiliary = joined(outliers, weights)
        if recipe.validation_auxiliary:
            parts = _held_out(outliers, recipe.validation_auxiliary, data.split_seed)
            auxiliary, held_out = (joined(sources, weights) for sources in parts)
    return TrainingData(splits, auxiliary, held_out, ood)


def count_steps(recipe: Recipe, data: TrainingData) -> int:
    """The steps of an epoch; raises RecipeError where there is none, and DataError where a sampler would choose among candidates
    of which several are the same picture."""
    steps = steps_in_epoch(len(data.id.train), recipe.training.batch_size, recipe.training.steps_per_epoch)
    if not recipe.uses_outliers or not recipe.sampler.sampler.needs_scores or data.auxiliary is None:
        return steps
    candidates = recipe.sampler.candidates * recipe.training.batch_size
    for source, weight in zip(data.auxiliary.parts, data.auxiliary.weights, strict=True):
        share = candidates * weight / sum(data.auxiliary.weights)
        if share > len(source):
            raise DataError(
                f"a step has {share:.0f} candidates of {source.name} (sampler.candidates = {recipe.sampler.candidates} for each "
                f"of {recipe.training.batch_size} ID images), which has {len(source)} images: sampler {recipe.sampler.name!r} "
                "would choose among copies; lower sampler.candidates, training.batch_size or the set's weight"
            )
    return steps


def _held_out(sources: Sequence[ImageSource], share: float, seed: int) -> tuple[list[ImageSource], list[ImageSource]]:
    """Of each set the images to train on, and those held out: a share (< 1) or a number of them, drawn by the seed.

    A picture that occurs several times, in one set or in two, is in one part only, that of the first.
    """
    drawn = []
    for source in sources:
        count = round(share * len(source)) if share < 1 else round(share)
        order = torch.randperm(len(source), generator=seeded_generator(seed, 5))
        drawn.append(torch.zeros(len(source), dtype=torch.bool).index_fill(0, order[:count], True))
    whole = joined(sources, [1.0] * len(sources))
    held = torch.cat(drawn)[first_places(whole)].split([len(source) for source in sources])
    for source, chosen in zip(sources, held, strict=True):
        if chosen.all() or not chosen.any():
            raise DataError(
                f"data.validation_auxiliary = {share:g} would hold out {int(chosen.sum())} of the {len(source)} images of "
                f"{source.name}: both parts need images"
            )
    kept = [source.subset((~chosen).nonzero().flatten()) for source, chosen in zip(sources, held, strict=True)]
    return kept, [source.subset(chosen.nonzero().flatten()) for source, chosen in zip(sources, held, strict=True)]


def channel_statistics(source: ImageSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel in pixels, over the first 10,000 images at most.

    A channel that is constant gets the deviation 1.
    """
    chosen = torch.linspace(0, len(source) - 1, min(len(source), NORMALISATION_IMAGES)).long()
    total, count = torch.zeros(2, source.shape[0], dtype=torch.float64), 0
    for indices in chosen.split(1000):
        images = to_pixels(source.batch(indices)).double()
        total[0] += images.sum((0, 2, 3)).cpu()
        total[1] += images.square().sum((0, 2, 3)).cpu()
        count += images.shape[0] * images.shape[2] * images.shape[3]
    mean = total[0] / count
    deviation = (total[1] / count - mean.square()).clamp_min(0).sqrt()
    deviation[deviation < 1e-3] = 1
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in deviation.tolist())


def build_network(recipe: Recipe, splits: IdSplits) -> Classifier:
    """The recipe's network for these images, initialised from the seed or from `training.init`.

    Raises DataError where the weights of `training.init` were trained on images that are held out here, and CheckpointError
    where they do not fit.
    """
    train, path = splits.train, recipe.training.init
    start = None if path is None else _starting_detector(recipe, path, splits)
    torch.manual_seed(recipe.run.seed)
    mean, std = recipe.model.mean, recipe.model.std
    if start is not None and isinstance(start.model, Classifier):
        require_normalisation(start.model, mean, std, f"{path}, the start of training,")
        mean, std = start.model.normalisation
    elif mean is None or std is None:
        mean, std = channel_statistics(train)
    if len(mean) != train.shape[0] or len(std) != train.shape[0]:
        raise ArchitectureError(
            f"model.mean and model.std must have one value per channel: images have {train.shape[0]}, "
            f"found {len(mean)} and {len(std)}"
        )
    model = build_model(
        recipe.model.architecture,
        num_classes=recipe.outputs(len(train.classes)),
        input_shape=train.shape,
        mean=mean,
        std=std,
        options=recipe.model.options,
    )
    if recipe.model.initialisation == "certified":
        initialise_for_bounds(model)
    if start is not None:
        require_unseen(start.split, splits, recipe, path)
        model.load_state_dict(_fitted(start.model.state_dict(), model.state_dict(), recipe))
    return model


def start_fingerprint(recipe: Recipe, splits: IdSplits) -> dict[str, str]:
    """SHA-256 of the weights that training starts from, by the name of the key; empty where it starts from none."""
    path = recipe.training.init
    if path is None:
        return {}
    return {"training.init": weights_hash(_starting_detector(recipe, path, splits).model.state_dict())}


def _starting_detector(recipe: Recipe, path: Path, splits: IdSplits) -> Detector:
    """The detector of a file that training starts from; weights that certood did not write are what the recipe's [model] says.

    Raises CheckpointError where they do not fit, or nothing says how their images are normalised.
    """
    model = recipe.model
    if is_own(path):
        # The recipe names the user's code; the file that training starts from does not.
        return load_checkpoint(path, architecture=model.architecture if runs_user_code(model.architecture) else None)
    if is_onnx(path):
        raise CheckpointError(f"training cannot start from {path}: the network of an ONNX file stays in that file")
    start = load_foreign(
        path,
        architecture=model.architecture,
        classes=splits.train.classes,
        input_shape=splits.train.shape,
        mean=model.mean,
        std=model.std,
        options=model.options,
    )
    if model.mean is None and (set(start.mean), set(start.std)) == ({0.0}, {1.0}):
        raise CheckpointError(
            f"{path} was not written by certood and holds no normalisation: give the one that it was trained with as "
            "model.mean and model.std, a number a channel"
        )
    return start


def require_unseen(start: Split | None, splits: IdSplits, recipe: Recipe, path: Path | None) -> None:
    """Raise DataError where the weights of a file, which have the split `start`, were trained on what is now a validation or
    test image."""
    seen = None if start is None else seen_in_training(start, splits, root=recipe.data.root)
    if start is not None and seen:
        raise DataError(
            f"{path} was trained on {seen} of the images that are validation or test images here; use its "
            f"split: data.split_seed={start.seed}, data.validation={start.validation:g}, "
            f"data.id={start.id}, data.id_test={start.id_test or ''}"
        )


def _fitted(initial: Mapping[str, Tensor], wanted: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """The initial weights in the shapes of the network; an absent class keeps its own fresh row of the head."""
    fitted = {}
    for name, own in wanted.items():
        given = initial.get(name)
        if given is not None and recipe.absent_class and own.ndim and given.shape == (len(own) - 1, *own.shape[1:]):
            given = torch.cat([given, own[-1:]])
        if given is None or given.shape != own.shape:
            found = "missing" if given is None else f"of shape {tuple(given.shape)}"
            raise CheckpointError(
                f"{recipe.training.init} does not fit {recipe.model.architecture}: {name} should be "
                f"{tuple(own.shape)} and is {found}; use the architecture and options it was trained with"
            )
        fitted[name] = given
    return fitted
