"""Margins and λ_∇ from the starting network: medians and norms against other computations of them, and what is recorded."""

import copy
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from certood.checkpoints import load_checkpoint
from certood.cli import main
from certood.data import joined
from certood.errors import RecipeError, RunDirectoryError
from certood.inference import collect_logits
from certood.models import build_model
from certood.runs import RunDirectory
from certood.runs.kinds import kind_of
from certood.train import automatic, loop
from certood.train.automatic import SHARE, _rounded_within, explain_run, explanation, settle, with_numbers
from certood.train.continuing import is_finished
from certood.train.loop import fit
from certood.train.recipe import Recipe, load_recipe
from certood.train.setup import TrainingData, build_network, load_training_data

CPU = torch.device("cpu")
SHORT = ("training.epochs=1", "training.steps_per_epoch=2", "run.device=cpu")
AUTO = ("objective.margin_in=auto", "objective.margin_out=auto", "gradient.weight=auto")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "ce"
    fit(load_recipe("digits-ce", ["training.epochs=4", "run.device=cpu"]), out, progress=False)
    return out


def recipe_of(start: Path, *settings: str) -> Recipe:
    return load_recipe("digits-greg", [*SHORT, *AUTO, f"training.init={start}", *settings])


@pytest.fixture(scope="module")
def data(start: Path) -> TrainingData:
    return load_training_data(recipe_of(start))


def test_margins_are_medians_of_the_energies(start: Path, data: TrainingData) -> None:
    recipe = recipe_of(start)
    record = settle(recipe, data, build_network(recipe, data.id), CPU)
    model = load_checkpoint(start / "checkpoint.safetensors").model
    assert data.auxiliary is not None
    for key, source in (("objective.margin_in", data.id.validation), ("objective.margin_out", data.auxiliary)):
        # The digits are fewer than 2,000, so that every image counts.
        energies = -np.log(np.exp(collect_logits(model, source).numpy()).sum(1))
        assert record[key]["images"] == len(energies)
        low, median, high = np.quantile(energies, [0.25, 0.5, 0.75])
        assert record[key]["value"] == float(f"{median:.4g}")
        assert record[key]["lower_quartile"] == pytest.approx(low)
        assert record[key]["upper_quartile"] == pytest.approx(high)


def test_a_margin_keeps_its_place_among_scores_that_lie_closely_together(start: Path, data: TrainingData) -> None:
    recipe = recipe_of(
        start, "objective.name=outlier-exposure", "objective.margin_in=auto", "objective.margin_out=auto"
    )
    network = build_network(recipe, data.id)
    with torch.no_grad():
        head = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
        head.weight *= 20
        head.bias *= 20
    found = settle(recipe, data, network, CPU)["objective.margin_in"]
    scores = -torch.softmax(collect_logits(network, data.id.validation), 1).max(1).values
    assert found["upper_quartile"] < -0.99
    assert 0.45 < (scores <= found["value"]).float().mean() < 0.55
    # Where they lie apart four digits are enough.
    assert _rounded_within(-16.7213, 4.0) == -16.72
    assert _rounded_within(-0.99999871, 0.0) == -0.99999871


def test_the_weight_gives_the_gradient_term_its_share(
    start: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automatic, "BATCHES", 1)
    # All outliers are picked and no batch statistics are there, so that the terms can be written down here.
    recipe = recipe_of(start, "sampler.candidates=1", "sampler.outliers=1")
    network = build_network(recipe, data.id)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    before = copy.deepcopy(network.state_dict())
    record = settle(recipe, data, network, CPU)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    settled = with_numbers(recipe, record)
    weight, (m_in, m_out) = settled.gradient.number, (record[key]["value"] for key in automatic.MARGINS)
    (inside, labels, outside), *others = automatic._batches(settled, data, network, CPU)
    assert not others
    images = torch.cat([inside, outside]).requires_grad_()
    logits = network(images)
    energy = -logits.logsumexp(1)
    e_in, e_out = energy.split([len(inside), len(outside)])
    hinges = (e_in - m_in).clamp_min(0).square().mean() + (m_out - e_out).clamp_min(0).square().mean()
    rest = nn.functional.cross_entropy(logits[: len(inside)], labels) + 0.1 * hinges
    (slope,) = torch.autograd.grad(energy.sum(), images, create_graph=True)
    n_in, n_out = slope.flatten(1).norm(dim=1).split([len(inside), len(outside)])
    term = (n_in * (e_in <= m_in)).mean() + (n_out * (e_out >= m_out)).mean()
    weights = list(network.parameters())

    def length(value: torch.Tensor) -> float:
        parts = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None]).norm().item()

    assert length(weight * term) / length(rest) == pytest.approx(SHARE, rel=0.01)
    assert record["gradient.weight"]["norm_rest"] == pytest.approx(length(rest), rel=1e-4)
    assert record["gradient.weight"]["norm_gradient_term"] == pytest.approx(length(term), rel=1e-4)


def test_the_network_keeps_its_running_statistics_and_its_mode(start: Path, data: TrainingData) -> None:
    torch.manual_seed(0)
    shape = {"input_shape": (1, 8, 8), "mean": (0.3,), "std": (0.4,)}
    network = build_model("resnet20", num_classes=6, **shape).train()  # type: ignore[arg-type]
    before = copy.deepcopy(network.state_dict())
    assert any("running_mean" in name for name in before)
    recipe = recipe_of(start, "objective.margin_in=-2.0", "objective.margin_out=-1.5", "sampler.candidates=1")
    record = settle(recipe, data, network, CPU)
    assert record.keys() == {"gradient.weight"}
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_run_has_numbers_and_says_how_they_came_about(start: Path, tmp_path: Path) -> None:
    recipe = recipe_of(start)
    fit(recipe, tmp_path / "run-0", progress=False)
    tables = tomllib.loads((tmp_path / "run-0" / "recipe.toml").read_text())
    record = tables["record"]["auto"]
    assert (
        tables["objective"]["margin_in"] == record["objective.margin_in"]["value"] < tables["objective"]["margin_out"]
    )
    assert tables["gradient"]["weight"] == record["gradient.weight"]["value"] > 0
    assert explain_run(RunDirectory(tmp_path / "run-0")) == explanation(
        load_recipe(str(tmp_path / "run-0" / "recipe.toml")), record
    )
    # The numbers of the run, given as numbers, are the same training.
    again = load_recipe(str(tmp_path / "run-0" / "recipe.toml"))
    assert again.automatic == []
    fit(again, tmp_path / "again", progress=False)
    states = [load_checkpoint(tmp_path / name / "checkpoint.safetensors").model for name in ("run-0", "again")]
    for one, other in zip(*(state.parameters() for state in states), strict=True):
        assert torch.equal(one, other)
    # "auto" continues it and counts it as finished, other settings do not.
    assert is_finished(recipe, tmp_path / "run-0")
    assert is_finished(again, tmp_path / "run-0")
    fit(recipe, tmp_path / "run-0", resume=True, progress=False)
    with pytest.raises(RunDirectoryError, match=r"\(gradient.weight: 0.* there, 0.1 here\)"):
        is_finished(load_recipe("digits-greg", [*SHORT, *AUTO[:2], f"training.init={start}"]), tmp_path / "run-0")
    # Runs of other seeds take the same numbers, and are one kind with it.
    fit(recipe_of(start, "run.seed=1"), tmp_path / "run-1", progress=False)
    other = RunDirectory(tmp_path / "run-1").recipe_tables()
    assert other["record"]["auto"] == record
    assert kind_of(other) == kind_of(tables)
    assert kind_of(other)["gradient.weight"] == "auto"
    assert kind_of(RunDirectory(tmp_path / "again").recipe_tables()) != kind_of(tables)


def test_the_explanation_has_the_numbers(start: Path, data: TrainingData) -> None:
    recipe = recipe_of(start)
    record = settle(recipe, data, build_network(recipe, data.id), CPU)
    inside, outside, weight = explanation(with_numbers(recipe, record), record)
    found = record["objective.margin_in"]
    assert inside.startswith(
        f"objective.margin_in = {found['value']:g}: the median energy of {found['images']} images of digits"
    )
    assert str(start) in inside
    assert f"between {found['lower_quartile']:.4g} and {found['upper_quartile']:.4g}" in inside
    assert outside.startswith(f"objective.margin_out = {record['objective.margin_out']['value']:g}: ")
    assert f"has {SHARE} of the parameter gradient" in weight
    assert explanation(recipe, {}) == []


def test_a_run_without_auto_says_so_and_what_is_no_run_is_refused(start: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["recipe", "explain", str(start)])
    assert shown.exit_code == 0
    (line,) = shown.output.splitlines()
    assert line.endswith('recipe.toml was given; none was "auto".')
    with pytest.raises(RunDirectoryError, match=r"has no recipe.toml: it is no run that certood trained"):
        explain_run(RunDirectory(tmp_path))
    shown = CliRunner().invoke(main, ["recipe", "explain", str(tmp_path / "elsewhere")])
    assert "no run directory" in shown.output
    assert "elsewhere" in shown.output
    assert CliRunner().invoke(main, ["recipe", "explain", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective.margin_in=auto"], r"objective.margin_in = 'auto' is read off a starting network, and there is none"),
        (["gradient.weight=auto", "objective.margin_out=auto"], "margin_out and gradient.weight = 'auto' .* training.init"),
        (["gradient.weight=auto", "training.init=x", "data.auxiliary=", "objective.name=cross-entropy"], "name outliers"),
        (["objective.name=absent-class", "objective.margin_in=auto", "training.init=x"], "is not trained there: give numbers"),
        (["objective.weight=auto"], "'objective.weight': Input should be a valid number"),
        (["objective.margin_in=car"], "'objective.margin_in': Input should be a valid number"),
        (["gradient.weight=car"], r"'gradient.weight': expected a number .* to 0, or 'auto' \(found 'car'\)"),
        (["gradient.weight=inf"], "'gradient.weight': expected a number"),
        (["gradient.weight=true"], "'gradient.weight': expected a number"),
    ],
)  # fmt: skip
def test_mistakes_are_one_error_before_anything_is_loaded(
    settings: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-greg", settings)
    monkeypatch.setattr(loop, "load_training_data", None)
    words = [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(main, ["train", "digits-greg", *words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_network_that_gives_no_numbers_is_refused_before_anything_is_written(
    start: Path, tmp_path: Path, data: TrainingData
) -> None:
    recipe = recipe_of(start)
    network = build_network(recipe, data.id)
    with torch.no_grad():
        # Energies that are all the same separate nothing.
        for weight in network.parameters():
            weight.zero_()
    message = r"margins of 'auto' would be m_in = .* scores auxiliary outliers no higher than ID images"
    with pytest.raises(RecipeError, match=message):
        settle(recipe, data, network, CPU)
    # So do those that are higher for ID images, and a median beyond the margin that is given.
    assert data.auxiliary is not None
    swapped = replace(
        data, id=replace(data.id, validation=data.auxiliary), auxiliary=joined([data.id.validation], [1.0])
    )
    with pytest.raises(RecipeError, match=message):
        settle(recipe, swapped, build_network(recipe, data.id), CPU)
    given = load_recipe(
        "digits-greg", [*SHORT, "objective.margin_in=auto", "objective.margin_out=-50", f"training.init={start}"]
    )
    with pytest.raises(RecipeError, match=message):
        settle(given, data, build_network(given, data.id), CPU)
    closed = load_recipe(
        "digits-greg",
        [
            *SHORT,
            "gradient.weight=auto",
            "objective.margin_in=-1e6",
            "objective.margin_out=1e6",
            f"training.init={start}",
        ],
    )
    with pytest.raises(RecipeError, match="no gate of the gradient term is open"):
        fit(closed, tmp_path / "closed", progress=False)
    assert not (tmp_path / "closed" / "recipe.toml").exists()
