"""Whole runs: files, reproducibility, resume after a kill, several processes, and divergence."""

import csv
import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor

from certood.checkpoints import load_checkpoint
from certood.data import load_id, load_set, to_pixels
from certood.errors import CheckpointError, DataError, RecipeError, TrainingDiverged
from certood.models import build_model
from certood.models.classifier import Classifier
from certood.runs import RunDirectory
from certood.train import candidates
from certood.train.candidates import score_candidates
from certood.train.loop import check_shares, fit
from certood.train.penalty import GradientPenalty
from certood.train.recipe import Recipe, load_recipe
from certood.train.setup import build_network, count_steps, load_training_data
from certood.train.step import TrainingStep
from tests.train.interruption import interrupted_after

SHORT = ["training.epochs=3", "training.steps_per_epoch=4", "run.device=cpu", "model.options.width=4"]


def recipe(name: str = "digits-greg-plus", *settings: str) -> Recipe:
    return load_recipe(name, [*SHORT, *settings])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(RunDirectory(out).checkpoint)


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["digits-ce", "digits-oe", "digits-energy", "digits-greg", "digits-greg-plus"])
def test_a_run_leaves_its_files_and_they_agree(tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    detector = fit(recipe(name), out, progress=False)
    with RunDirectory(out).training.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["gradient_norm_in"]) > 0 and float(row["gradient_norm_out"]) > 0 for row in rows)
    assert (float(rows[-1]["gradient"]) > 0) == ("greg" in name)
    record = tomllib.loads((out / "recipe.toml").read_text())["record"]
    assert record["sha256"]["digits-near"] == load_set("digits-near", root=Path()).fingerprint
    result = json.loads((out / "evaluation.json").read_text())
    splits = load_id("digits", root=Path(), validation=0.2)
    held = detector.scores(to_pixels(splits.validation.batch(torch.arange(len(splits.validation)))))
    assert detector.threshold is not None
    assert 0.95 <= (held <= detector.threshold + 1e-5).double().mean().item() < 0.97
    stored = result["scores"][detector.score.name]
    assert stored["threshold"] == detector.threshold
    near = detector.scores(to_pixels(load_set("digits-near", root=Path()).batch(torch.arange(354))))
    accepted = (near <= detector.threshold).double().mean().item()
    assert stored["sets"]["digits-near"]["fpr95"] == pytest.approx(accepted, abs=0.006)


def test_a_seed_reproduces_a_run_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(recipe("digits-greg-plus", f"run.seed={seed}"), tmp_path / name, progress=False)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_everything_random_in_a_run_derives_from_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order of images, candidates, augmentation, picks and first weights: none from another number."""
    from certood.train import batches, epoch

    drawn = []

    def recorded(seed: int, *parts: int, device: torch.device | str = "cpu") -> torch.Generator:
        drawn.append((seed, parts[1]))
        return seeded_generator(seed, *parts, device=device)

    seeded_generator = batches.seeded_generator
    monkeypatch.setattr(batches, "seeded_generator", recorded)
    monkeypatch.setattr(epoch, "seeded_generator", recorded)
    once = ("training.epochs=1", "training.steps_per_epoch=1", "data.split_seed=5", "run.seed=3")
    fit(recipe("digits-greg-plus", *once), tmp_path / "run", progress=False)
    assert {seed for seed, _ in drawn} == {3}
    assert {0, 1, 2, 3, 4} <= {part for _, part in drawn}
    splits = load_id("digits", root=Path(), validation=0.2)
    networks = [build_network(recipe("digits-ce", f"run.seed={seed}"), splits).state_dict() for seed in (3, 4, 3)]
    torch.manual_seed(3)
    expected = build_model(
        "small-cnn", num_classes=6, input_shape=(1, 8, 8), mean=[0.0], std=[1.0], options={"width": 4}
    ).state_dict()
    weight = next(name for name in expected if name.endswith("weight"))
    assert torch.equal(networks[0][weight], expected[weight])
    assert torch.equal(networks[2][weight], expected[weight])
    assert not torch.equal(networks[1][weight], expected[weight])


def test_gradient_norms_of_training_csv_are_those_of_the_checkpoint_and_take_no_more_images_than_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certood.train import probe

    sizes, norms = [], probe.gradient_norms
    monkeypatch.setattr(
        probe, "gradient_norms", lambda model, part, score: (sizes.append(len(part)), norms(model, part, score))[1]
    )
    fit(recipe("digits-energy", "training.batch_size=48"), tmp_path / "run", progress=False)
    assert max(sizes) == 48
    with RunDirectory(tmp_path / "run").training.open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    model = load_checkpoint(RunDirectory(tmp_path / "run").checkpoint).model
    sets = (
        load_id("digits", root=Path(), validation=0.2).validation,
        load_set("digits-auxiliary", root=Path(), split="train"),
    )
    for source, column in zip(sets, ("gradient_norm_in", "gradient_norm_out"), strict=True):
        found = []
        for place in torch.linspace(0, len(source) - 1, min(len(source), 256)).long():
            image = to_pixels(source.batch(place[None])).requires_grad_()
            (-model(image).exp().sum().log()).backward()
            found.append(image.grad.norm().item())
        assert float(row[column]) == pytest.approx(sum(found) / len(found), rel=1e-4)


def test_an_interrupt_leaves_a_resumable_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lazy gradient term, in each third step; steps are counted over all epochs, of 4 steps."""
    numbers: list[int] = []
    times = GradientPenalty.times
    monkeypatch.setattr(GradientPenalty, "times", lambda own, step: numbers.append(step) or times(own, step))
    own = recipe("digits-greg-plus", "gradient.every=3")
    fit(own, tmp_path / "whole", progress=False)
    with interrupted_after(1):
        fit(own, tmp_path / "cut", progress=False)
    numbers.clear()
    fit(own, tmp_path / "cut", resume=True, progress=False)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert numbers == [*range(4, 4 * own.training.epochs)]


def test_a_loss_that_is_not_finite_stops_with_the_step_and_a_hint(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"not finite at step \d+ of epoch \d+ \(total .*smaller optimiser.learning"
    ):
        fit(
            recipe("digits-greg", "optimiser.name=sgd", "optimiser.learning_rate=1e30"),
            tmp_path / "run",
            progress=False,
        )
    assert not RunDirectory(tmp_path / "run").checkpoint.exists()


# Imports take longest: one process makes them, and then becomes two with the variables that torchrun sets.
TWICE = """
import os, sys
import certood.analysis, certood.train.loop
from certood.cli import main
out, *words = sys.argv[1:]
other = os.fork()
os.environ["RANK"] = os.environ["LOCAL_RANK"] = "1" if other == 0 else "0"
for mode in ("exact", "finite-difference"):
    main([*words, "--set", f"gradient.mode={mode}", "--out", f"{out}/{mode}"], standalone_mode=False)
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    # Greedy picks depend on the scores of all candidates, which the two processes share out and gather.
    settings = ["gradient.weight=0.05", "sampler.name=greedy"]
    command = [sys.executable, "-c", TWICE, str(tmp_path / "two"), "train", "digits-greg-plus"]
    for setting in [*SHORT, *settings]:
        command += ["--set", setting]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # What Lightning recognises a process of torchrun by.
        "TORCHELASTIC_RUN_ID": "none",
        "GROUP_RANK": "0",
    }
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for mode in ("exact", "finite-difference"):
        alone = tmp_path / "one" / mode
        fit(recipe("digits-greg-plus", *settings, f"gradient.mode={mode}"), alone, progress=False)
        with (
            RunDirectory(alone).training.open() as one,
            RunDirectory(tmp_path / "two" / mode).training.open() as two,
        ):
            for first, second in zip(csv.DictReader(one), csv.DictReader(two), strict=True):
                for column in ("loss", "cross_entropy", "outlier", "gradient"):
                    assert float(first[column]) == pytest.approx(float(second[column]), rel=1e-5), (mode, column)


def test_candidates_are_scored_and_trained_on_in_the_same_augmented_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, trained_on = [], []

    def scoring(model: Classifier, images: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        found = score_candidates(model, images, *rest)
        pools.append((images, found[0]))
        return found

    def stepping(step: TrainingStep, images_in: Tensor, labels: Tensor, images_out: Tensor, *rest: Any) -> Any:
        trained_on.append(images_out)
        return forward(step, images_in, labels, images_out, *rest)

    forward = TrainingStep.forward
    monkeypatch.setattr(candidates, "score_candidates", scoring)
    monkeypatch.setattr(TrainingStep, "forward", stepping)
    changed = ("data.crop_padding=2", "data.flip=true", "sampler.name=greedy", "training.epochs=1")
    fit(recipe("digits-energy", *changed), tmp_path / "run", progress=False)
    source = load_set("digits-auxiliary", root=Path("data"), split="train")
    outliers = to_pixels(source.batch(torch.arange(len(source))))
    for (images, scores), images_out in zip(pools, trained_on, strict=True):
        # The greedy picks are the very images of lowest score, and many of them stand nowhere as they are.
        assert torch.equal(images_out, images[scores.topk(len(images_out), largest=False).indices])
        assert torch.cdist(images_out.flatten(1), outliers.flatten(1)).amin(1).gt(0).float().mean() > 0.5


def test_the_steps_of_a_lazy_gradient_term_are_clipped_at_as_many_times_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[float] = []
    monkeypatch.setattr(Fabric, "clip_gradients", lambda *_, max_norm, **__: lengths.append(max_norm))
    short = ("training.epochs=1", "training.steps_per_epoch=4", "optimiser.clip=2.5")
    fit(recipe("digits-greg-plus", *short, "gradient.every=3"), tmp_path / "lazy", progress=False)
    fit(recipe("digits-greg-plus", *short), tmp_path / "every", progress=False)
    fit(recipe("digits-ce", *short), tmp_path / "none", progress=False)
    assert lengths == [7.5, 2.5, 2.5, 7.5] + 8 * [2.5]


def test_a_sampler_does_not_choose_among_copies(tmp_path: Path) -> None:
    many = ("sampler.candidates=100", "training.batch_size=64")
    with pytest.raises(
        DataError, match=r"a step has 6400 candidates .* has \d+ images: sampler 'cluster' would choose"
    ):
        fit(recipe("digits-greg-plus", *many), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    # Of several sets each gives its share by weight, whatever its size.
    np.savez(tmp_path / "few.npz", images=np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    both = recipe("digits-greg-plus", f"data.root={tmp_path}", "data.auxiliary=['digits-auxiliary','npz:few.npz']")
    with pytest.raises(DataError, match=r"a step has 192 candidates of npz:few.npz .* which has 20 images"):
        count_steps(both, load_training_data(both))
    alike = recipe("digits-greg-plus", *many, "sampler.name=random")
    count_steps(alike, load_training_data(alike))


def test_a_picture_that_occurs_twice_is_not_trained_on_and_held_out(tmp_path: Path) -> None:
    own = np.random.default_rng(0).integers(0, 256, (90, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "twice.npz", images=np.concatenate([own[:60], own[:60]]))
    np.savez(tmp_path / "again.npz", images=own[40:])
    found = load_training_data(
        recipe(
            "digits-energy",
            f"data.root={tmp_path}",
            "data.auxiliary=['npz:twice.npz','npz:again.npz']",
            "data.validation_auxiliary=0.3",
            "data.allow_shared=[]",
            "training.batch_size=8",
        )
    )
    assert found.auxiliary is not None
    assert found.auxiliary_validation is not None
    kept, held = (
        [image.tobytes() for image in source.batch(torch.arange(len(source))).numpy()]
        for source in (found.auxiliary, found.auxiliary_validation)
    )
    assert set(kept).isdisjoint(held)
    assert len(set(kept) | set(held)) == 90
    assert len(kept) + len(held) == 170
    assert 30 < len(held) < 75


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    check_shares(recipe("digits-ce", "training.batch_size=63"), 3)
    with pytest.raises(RecipeError, match="63, which 2 processes cannot share evenly"):
        check_shares(recipe("digits-ce", "training.batch_size=63"), 2)


@pytest.mark.usefixtures("short_products")
def test_bf16_trains(tmp_path: Path) -> None:
    for mode in ("exact", "finite-difference"):
        detector = fit(
            recipe("digits-greg", "run.precision=bf16-mixed", f"gradient.mode={mode}"), tmp_path / mode, progress=False
        )
        assert detector.threshold is not None


def test_fine_tuning_starts_from_the_given_weights(tmp_path: Path) -> None:
    fit(recipe("digits-ce"), tmp_path / "start", progress=False)
    still = ["optimiser.learning_rate=1e-12", f"training.init={tmp_path / 'start'}"]
    fit(recipe("digits-energy", *still), tmp_path / "tuned", progress=False)
    before, after = weights(tmp_path / "start"), weights(tmp_path / "tuned")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    absent = [*still, "objective.name=absent-class"]
    fit(recipe("digits-energy", *absent), tmp_path / "absent", progress=False)
    grown = weights(tmp_path / "absent")["classifier.weight"]
    assert len(grown) == 7
    assert torch.allclose(grown[:6], before["classifier.weight"], atol=1e-6)
    assert load_checkpoint(tmp_path / "absent").absent_class


def foreign_start(tmp_path: Path) -> tuple[Path, list[str]]:
    """A trained network's state dict as others would save it, without normalisation; and the settings that describe it."""
    fit(recipe("digits-ce"), tmp_path / "start", progress=False)
    kept = {
        f"module.{name}": value
        for name, value in weights(tmp_path / "start").items()
        if not name.startswith("normalise")
    }
    torch.save({"state_dict": kept}, tmp_path / "theirs.pth")
    detector = load_checkpoint(tmp_path / "start")
    described = [f"model.mean={list(detector.mean)}", f"model.std={list(detector.std)}"]
    return tmp_path / "theirs.pth", described


def test_fine_tuning_starts_from_foreign_weights(tmp_path: Path) -> None:
    theirs, described = foreign_start(tmp_path)
    still = ["optimiser.learning_rate=1e-12", f"training.init={theirs}", *described]
    tuned = fit(recipe("digits-energy", *still), tmp_path / "tuned", progress=False)
    images = to_pixels(load_set("digits-near", root=Path()).batch(torch.arange(8)))
    expected = load_checkpoint(tmp_path / "start").model(images)
    assert torch.allclose(tuned.model(images), expected, atol=1e-4)
    absent = fit(recipe("digits-energy", *still, "objective.name=absent-class"), tmp_path / "absent", progress=False)
    assert torch.allclose(absent.model(images)[:, :6], expected, atol=1e-4)


def test_foreign_weights_to_start_from_must_be_described(tmp_path: Path) -> None:
    theirs, described = foreign_start(tmp_path)
    start = f"training.init={theirs}"
    with pytest.raises(CheckpointError, match=r"theirs.pth was not written by certood and .* model.mean and model.std"):
        fit(recipe("digits-energy", start), tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match=r"theirs.pth"):
        fit(recipe("digits-energy", start, *described, "model.options.width=8"), tmp_path / "run", progress=False)
    (tmp_path / "theirs.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot start from .* ONNX"):
        fit(recipe("digits-energy", f"training.init={tmp_path / 'theirs.onnx'}"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_training_starts_from_has_one_normalisation(tmp_path: Path) -> None:
    """That of its weights: another one that is given is refused, none is taken over, also into the checkpoint."""
    half = ["model.mean=[0.5]", "model.std=[0.25]"]
    fit(recipe("digits-ce", *half), tmp_path / "start", progress=False)
    on = ["optimiser.learning_rate=1e-12", f"training.init={tmp_path / 'start'}"]
    for settings in (on, [*on, *half]):
        fit(recipe("digits-energy", *settings), tmp_path / "tuned", progress=False, overwrite=True)
        tuned = load_checkpoint(tmp_path / "tuned")
        assert (tuned.mean, tuned.std) == ((0.5,), (0.25,))
        assert tuned.model.state_dict()["normalise.mean"].flatten().tolist() == [0.5]
    with pytest.raises(
        CheckpointError, match=r"start of training, holds a normalisation of its own with mean \[0.5\], not"
    ):
        fit(recipe("digits-energy", *on, "model.mean=[0.9]", "model.std=[0.25]"), tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match=r"with std \[0.25\], not \[0.9\]"):
        fit(recipe("digits-energy", *on, "model.mean=[0.5]", "model.std=[0.9]"), tmp_path / "run", progress=False)
    bare = tmp_path / "bare.pth"
    torch.save(weights(tmp_path / "start"), bare)
    tuned = fit(recipe("digits-energy", *on[:1], f"training.init={bare}"), tmp_path / "bare", progress=False)
    assert (tuned.mean, tuned.std) == ((0.5,), (0.25,))


def test_an_absent_class_joins_a_network_with_batch_normalisation(tmp_path: Path) -> None:
    """Its counters of batches are numbers without an axis."""
    network = ["model.architecture=resnet18", "training.epochs=1", "training.steps_per_epoch=1"]
    fit(recipe("digits-ce", *network), tmp_path / "start", progress=False)
    absent = [
        *network,
        "objective.name=absent-class",
        f"training.init={tmp_path / 'start'}",
        "optimiser.learning_rate=1e-12",
    ]
    fit(recipe("digits-energy", *absent), tmp_path / "absent", progress=False)
    before, after = weights(tmp_path / "start"), weights(tmp_path / "absent")
    assert any(not value.ndim for value in before.values())
    grown = [name for name in before if before[name].shape != after[name].shape]
    assert len(grown) == 2
    for name in grown:
        assert torch.allclose(after[name][:6], before[name], atol=1e-6)


def test_a_share_of_validation_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch_size is 5000, but there are only"):
        fit(recipe("digits-ce", "training.batch_size=5000"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
