"""From a trained guard and the detector that it guards to one detector."""

from dataclasses import replace

from certood.checkpoints import load
from certood.checkpoints.onnx_file import ONNX_ARCHITECTURE
from certood.data import require_same_classes
from certood.detector import Detector
from certood.errors import ArchitectureError, CheckpointError
from certood.inference import collect_logits
from certood.models.catalogue import require_guard
from certood.models.guarded import GuardDescription, GuardedNetwork
from certood.runs.identity import detector_identity
from certood.scores.guarded import fitted
from certood.train.assembly import Training
from certood.train.recipe import Recipe
from certood.train.setup import TrainingData, require_unseen, start_fingerprint


def open_guarded(recipe: Recipe) -> Detector | None:
    """The detector that the recipe's network is to guard, or None where it guards none.

    Raises RecipeError for a guard of nothing, CheckpointError where the file does not read, or a guard would not go into one
    checkpoint with it, and ArchitectureError for a guard of the user's own code.
    """
    path, section = recipe.guarded, recipe.guard
    if path is None or section is None:
        return None
    require_guard(recipe.model.architecture)
    detector = load(
        path,
        architecture=section.architecture,
        classes=section.classes,
        input_shape=section.input_shape,
        mean=section.mean,
        std=section.std,
    )
    if detector.guard is not None:
        raise CheckpointError(f"{path} has a guard already; name the detector that was guarded")
    if detector.architecture == ONNX_ARCHITECTURE:
        raise CheckpointError(
            f"{path}: the network of an ONNX file stays in that file, and cannot go into one checkpoint with a guard; name its "
            "weights with --architecture"
        )
    return detector


def check_guarded(detector: Detector, data: TrainingData, recipe: Recipe) -> None:
    """Raise ArchitectureError where a guard trained on these images would not suit the detector, and DataError where the
    classes are others, or the detector was trained on images that are held out here."""
    if data.id.train.shape != detector.input_shape:
        raise ArchitectureError(
            f"the guard takes images of shape {data.id.train.shape}, as data.id has them, and {recipe.guarded} takes "
            f"{detector.input_shape}: both must take the same; choose the detector's own data.id, or data.size"
        )
    require_same_classes(detector.classes, data.id.test, f"the classes of {recipe.guarded}")
    require_unseen(detector.split, data.id, recipe, recipe.guarded)


def input_fingerprints(recipe: Recipe, data: TrainingData, guarded: Detector | None) -> dict[str, str]:
    """SHA-256 of all that training reads, by name: image sets, the weights it starts from, and the detector that is guarded."""
    detector = {} if guarded is None else {"guarded-detector": fingerprint(guarded)}
    return data.fingerprints | start_fingerprint(recipe, data.id) | detector


def fingerprint(detector: Detector) -> str:
    """SHA-256 of all that a guarded detector takes over: everything but γ."""
    found: str = detector_identity(replace(detector, threshold=None, tpr=0.95))["sha256"]
    return found


def join(training: Training, detector: Detector) -> Detector:
    """The guard that was trained and the detector that it guards as one detector, its constants and γ from validation images.

    The classifier, and with it every logit, stays as it is. Raises CertoodError where a score is constant.
    """
    section, device = training.recipe.guard, training.fabric.device
    assert section is not None, "a recipe of a guard says how it is joined"
    guard, changed = training.network.eval().stored()
    network, validation = GuardedNetwork(detector.model, guard).to(device).eval(), training.data.id.validation
    outputs = collect_logits(network, validation, device=device)
    score = fitted(
        detector.score,
        section.alpha,
        guard=-outputs[:, -1],
        base=detector.output_score(outputs[:, :-1]),
        quantiles=(section.low, section.high),
    )
    joined = replace(
        detector,
        model=network,
        score=score,
        threshold=None,
        split=training.data.id.split,
        guard=GuardDescription(
            architecture=training.recipe.model.architecture,
            mean=guard.interface.mean,
            std=guard.interface.std,
            options={**training.recipe.model.options, **changed},
        ),
    )
    return joined.calibrated(validation, device=device)
