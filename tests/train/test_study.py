"""Studies: runs are those of their recipes, the same command continues, all arms share a split, mistakes are one error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from certood.checkpoints import load_checkpoint
from certood.cli import main
from certood.data.hashing import image_digests
from certood.errors import CertoodError, DataError, RecipeError, RunDirectoryError
from certood.runs import RunDirectory
from certood.runs.identity import weights_hash
from certood.train import epoch, loop, study
from certood.train.loop import fit
from certood.train.objectives.energy import EnergyMargin
from certood.train.progress import duration
from certood.train.recipe import load_recipe
from certood.train.setup import load_training_data
from certood.train.study import load_study, require_trainable

ROOT = Path(__file__).parents[2]
STUDIES = [ROOT / "examples" / "study.toml", *sorted((ROOT / "benchmarks").rglob("*.toml"))]
SHORT = {"training.epochs": 2, "training.steps_per_epoch": 2, "run.device": "cpu"}
TEXT = """
[study]
recipe = "digits-energy"
seeds = [0, 1]
near = "digits-near"
[study.set]
training.epochs = 2
training.steps_per_epoch = 2
run.device = "cpu"
[study.arms.energy]
[study.arms.greg]
gradient = { weight = 0.1 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def run(file: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["study", str(file), "--out", str(file.parent / "runs"), *map(str, arguments)])


def weights(folder: Path) -> str:
    return weights_hash(load_checkpoint(folder / "checkpoint.safetensors").model.state_dict())


def test_every_run_is_that_of_its_recipe_and_seed_and_is_done_once(file: Path, tmp_path: Path) -> None:
    done = run(file)
    assert done.exit_code == 0, done.output
    out = tmp_path / "runs"
    assert sorted(path.name for path in out.iterdir()) == ["energy-0", "energy-1", "greg-0", "greg-1"]
    settings = [f"{key}={value}" for key, value in SHORT.items()]
    fit(
        load_recipe("digits-energy", [*settings, "gradient.weight=0.1", "run.seed=1"]),
        tmp_path / "alone",
        progress=False,
    )
    assert weights(tmp_path / "alone") == weights(out / "greg-1")
    assert weights(out / "greg-1") != weights(out / "greg-0")
    assert "energy is done; left: 2 of 4 runs, about" in done.output
    assert "greg is done" not in done.output
    # The table is the comparison of these runs.
    results = [json.loads((out / f"greg-{seed}" / "evaluation.json").read_text()) for seed in (0, 1)]
    rates = np.array([100 * one["scores"]["energy"]["sets"]["digits-near"]["fpr95"] for one in results])
    assert f"{rates.mean():.1f} ± {rates.std(ddof=1):.1f}" in done.output
    assert "Near: digits-near." in done.output
    before = {path: path.stat().st_mtime_ns for path in out.rglob("checkpoint.safetensors")}
    again = run(file, "--json", tmp_path / "c.json")
    assert again.exit_code == 0, again.output
    assert again.output.count("(trained before)") == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((tmp_path / "c.json").read_text())["against"] == "energy"


@pytest.mark.slow
def test_what_was_interrupted_goes_on_and_ends_as_if_it_had_not_been(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 6:  # after the first epoch of the third run
            raise KeyboardInterrupt
        return epoch.train_epoch(*arguments)

    monkeypatch.setattr(loop, "train_epoch", interrupted)
    first = run(file)
    assert first.exit_code == 130, first.output
    assert f"What was done is kept in {tmp_path / 'runs'}; the same command continues." in first.output
    second = run(file)
    assert second.exit_code == 0, second.output
    assert second.output.count("(trained before)") == 2
    # Four runs of two epochs, of which one was begun twice.
    assert len(calls) == 4 * 2 + 1
    monkeypatch.undo()
    whole = CliRunner().invoke(main, ["study", str(file), "--out", str(tmp_path / "whole")])
    assert whole.exit_code == 0, whole.output
    for folder in (tmp_path / "whole").iterdir():
        assert weights(folder) == weights(tmp_path / "runs" / folder.name)


def test_one_arm_alone(file: Path, tmp_path: Path) -> None:
    done = run(file, "--only", "greg", "--set", "training.epochs=1")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["greg-0", "greg-1"]
    assert RunDirectory(tmp_path / "runs" / "greg-0").recipe_tables()["training"]["epochs"] == 1
    assert "is done; left" not in done.output
    assert "difference from" not in done.output
    refused = run(file, "--only", "gerg", "--set", "training.epochs=1")
    assert refused.exit_code == 2
    assert "no arm 'gerg'; did you mean 'greg'? Its arms: energy, greg" in refused.output


def test_an_arm_of_another_objective_has_that_objectives_margins(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        '[study]\nrecipe = "digits-ce"\nseeds = 0\n[study.arms.ce]\n[study.arms.energy]\nobjective.name = "energy"\n'
    )
    (recipe,) = load_study(path).arms["energy"].values()
    assert recipe.objective == load_recipe("digits-ce", ["objective.name=energy"]).objective
    assert recipe.objective.objective == EnergyMargin()


def test_arms_that_were_trained_with_other_files_of_the_same_names_are_no_study(file: Path, tmp_path: Path) -> None:
    noise = {"images": np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)}
    np.savez(tmp_path / "noise.npz", **noise)
    chosen = ("--set", f"data.auxiliary=npz:{tmp_path}/noise.npz")
    assert run(file, *chosen, "--only", "energy").exit_code == 0
    np.savez(tmp_path / "noise.npz", images=255 - noise["images"])
    refused = run(file, *chosen)
    assert refused.exit_code == 2
    assert f"noise.npz is not for what is to be trained what it was for {tmp_path}/runs/energy-0" in refused.output
    # Trained by another command, it is found out as well.
    (greg, _) = load_study(file, chosen[1:], tmp_path / "runs").arms["greg"].items()
    fit(greg[1], greg[0], progress=False)
    refused = run(file, *chosen)
    assert refused.exit_code == 2
    assert f"noise.npz is not for {tmp_path}/runs/greg-0 what it was for {tmp_path}/runs/energy-0" in refused.output


def test_a_study_goes_on_where_a_run_was_evaluated_by_another_score(file: Path, tmp_path: Path) -> None:
    assert run(file).exit_code == 0
    again = ["evaluate", str(tmp_path / "runs" / "greg-0"), "--score", "msp", "--overwrite"]
    assert CliRunner().invoke(main, again).exit_code == 0
    refused = run(file)
    assert refused.exit_code == 2
    assert "greg-0 was not evaluated by its own score 'energy': expected one of msp as --score" in refused.output


def test_two_arms_that_are_one_recipe_are_an_error_unless_one_is_left_out(file: Path, tmp_path: Path) -> None:
    same = run(file, "--set", "gradient.weight=0.2", "--set", "training.epochs=1")
    assert same.exit_code == 2
    assert "arms 'energy' and 'greg' are the same recipe" in same.output
    assert not (tmp_path / "runs").exists()
    assert load_study(file, ["gradient.weight=0.2"]).chosen(["greg"]) == ["greg"]


def test_two_arms_that_differ_in_their_device_alone_are_one_recipe(file: Path) -> None:
    file.write_text(
        TEXT.replace("gradient = { weight = 0.1 }", 'run = { device = "auto", trackers = ["tensorboard"] }')
    )
    with pytest.raises(RecipeError, match="arms 'energy' and 'greg' are the same recipe"):
        load_study(file).chosen([])
    file.write_text(TEXT.replace("gradient = { weight = 0.1 }", 'run = { precision = "bf16-mixed" }'))
    assert load_study(file).chosen([]) == ["energy", "greg"]


def test_changes_of_an_arm_win_over_common_ones_and_the_command_line_over_both(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[data]\nid = "digits"\nood = ["digits-near"]\nvalidation = 0.2\n')
    path = tmp_path / "s.toml"
    path.write_text(
        '[study]\nrecipe = "own.toml"\nseeds = 3\n[study.set]\n"training.epochs" = 2\noptimiser.learning_rate = 0.5\n'
        'data.ood = ["digits-photo"]\ndata.validation = 0.2\n'
        '[study.arms.a]\n[study.arms.b]\ntraining = { epochs = 7 }\n[study.arms.c]\nrecipe = "digits-greg"\n'
    )
    found = load_study(path, ["optimiser.learning_rate=0.25"], tmp_path)
    recipes = {folder.name: recipe for runs in found.arms.values() for folder, recipe in runs.items()}
    assert [(name, recipe.training.epochs, recipe.run.seed) for name, recipe in recipes.items()] == [
        ("a-3", 2, 3),
        ("b-3", 7, 3),
        ("c-3", 2, 3),
    ]
    assert {recipe.optimiser.optimiser.learning_rate for recipe in recipes.values()} == {0.25}  # type: ignore[attr-defined]
    assert recipes["c-3"].gradient.weight == load_recipe("digits-greg").gradient.weight > 0
    assert [recipe.recipe for recipe in recipes.values()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds = [0, 1]", "", r"small.toml: 'study.seeds' is missing"),
        ("seeds = [0, 1]", "seeds = 1.5", r"'study.seeds': Input should be a valid string \(found 1.5\)"),
        ("seeds = [0, 1]", "seeds = '2-0'", "expected seeds such as 0-4"),
        ("seeds = [0, 1]", "seeds = 0\nsedes = 1", "unknown key 'study.sedes'; known: recipe, seeds, out, against"),
        ('near = "digits-near"', 'near = "svhn"', "study.near names 'svhn', which is none of data.ood: digits-near"),
        ("[study.set]", "[study.set]\ndata.ood = []", "data.ood is empty, and arms are compared on OOD sets"),
        ('near = "digits-near"', 'against = "grge"', "no arm 'grge'; did you mean 'greg'"),
        ('near = "digits-near"', 'score = "energy:temperature=2"', "is not measured of arm 'energy': choose one of energy, "),
        ('near = "digits-near"', 'score = "energy:temperature=-1"', "temperature"),
        ('near = "digits-near"', 'score = "enrgy"', "unknown score 'enrgy'; did you mean 'energy'"),
        ("gradient = { weight = 0.1 }", "gradient.wieght = 1", "arm 'greg': unknown recipe key 'gradient.wieght'; did you"),
        ("gradient = { weight = 0.1 }", "gradient.weight = -1", "arm 'greg': recipe key 'gradient.weight': .* equal to 0"),
        ("gradient = { weight = 0.1 }", "run.seed = 4", "study.arms.greg changes 'run.seed', which study.seeds and"),
        ("gradient = { weight = 0.1 }", 'recipe = "digits-gerg"', "arm 'greg': unknown recipe 'digits-gerg'; did you mean"),
        ("gradient = { weight = 0.1 }", "data.split_seed = 1", r"'energy' and 'greg' differ in data.split_seed \(0 and 1\)"),
        ("gradient = { weight = 0.1 }", 'data.ood = "svhn"', "differ in data.ood"),
        ("gradient = { weight = 0.1 }", "data.validation = 0.3", "differ in data.validation"),
        ('recipe = "digits-energy"', "", "must name a recipe, found None"),
        ("[study.arms.energy]\n[study.arms.greg]\ngradient = { weight = 0.1 }", "", "'study.arms' is missing"),
        ("[study]", "[stduy]", r"small.toml: expected one table \[study\], found stduy"),
        ("[study]", "[study", "is not valid TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_one_error_before_anything_is_loaded(
    old: str, new: str, message: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "load_training_data", None)
    assert old in TEXT
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(CertoodError, match=message):
        load_study(file, out=file.parent / "runs")
    result = run(file)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert not (file.parent / "runs").exists()


def test_seeds_are_no_setting(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"--set changes 'run.seed'"):
        load_study(file, ["run.seed=3"])
    with pytest.raises(RecipeError, match="cannot read the study"):
        load_study(file.with_name("none.toml"))


def test_runs_of_other_recipes_are_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = file.parent / "runs"
    settings = [f"{key}={value}" for key, value in SHORT.items()]
    fit(load_recipe("digits-ce", [*settings, "run.seed=1"]), out / "greg-1", progress=False)
    before = weights(out / "greg-1")
    monkeypatch.setattr(study, "load_training_data", None)
    with pytest.raises(
        RunDirectoryError, match=r"greg-1 .* another recipe \(gradient.weight: 0.0 there, 0.1 here; ob.*; and "
    ):
        load_study(file, out=out)
    assert run(file).exit_code == 2
    assert not (out / "energy-0").exists()
    assert weights(out / "greg-1") == before


@pytest.fixture
def shared(tmp_path: Path) -> Callable[[int], Path]:
    """A study whose second arm has auxiliary outliers of which some are test images."""

    def write(common: int) -> Path:
        generator = np.random.default_rng(0)
        images = {
            name: generator.integers(0, 256, (40, 8, 8), dtype=np.uint8) for name in ("id", "test", "clean", "dirty")
        }
        if common:
            images["dirty"][:common] = images["test"][:common]
        np.savez(tmp_path / "id.npz", images=images.pop("id"), labels=np.arange(40) % 2)
        for name, part in images.items():
            np.savez(tmp_path / f"{name}.npz", images=part)
        (tmp_path / "small.toml").write_text(
            '[study]\nrecipe = "digits-energy"\nseeds = 0\n[study.set]\ntraining = { epochs = 1, batch_size = 4 }\n'
            f'data.id = "npz:id.npz"\ndata.ood = "npz:test.npz"\ndata.root = "{tmp_path}"\nrun.device = "cpu"\n'
            '[study.arms.clean]\ndata.auxiliary = "npz:clean.npz"\n[study.arms.dirty]\ndata.auxiliary = "npz:dirty.npz"\n'
        )
        return tmp_path / "small.toml"

    return write


def test_outliers_that_share_pictures_with_a_test_set_are_an_error_before_any_arm_is_trained(
    shared: Callable[[int], Path], tmp_path: Path
) -> None:
    refused = run(shared(3))
    assert refused.exit_code == 2
    assert (
        "Error: arm 'dirty': npz:dirty.npz (auxiliary outliers) and npz:test.npz (test outliers) share 3 pictures"
        in refused.stderr
    )
    assert not (tmp_path / "runs").exists()
    done = run(shared(0))
    assert done.exit_code == 0, done.output


def test_a_split_that_comes_out_differently_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {name: next(iter(runs.values())) for name, runs in load_study(file).arms.items()}
    other = recipes["greg"].model_copy(update={"data": recipes["greg"].data.model_copy(update={"split_seed": 1})})
    with pytest.raises(DataError, match=r"measured on different images \(id-test, id-validation differ\)"):
        require_trainable({**recipes, "greg": other})


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_no_arm_of_a_study_of_ours_sees_the_test_images_of_another(path: Path, tmp_path: Path) -> None:
    study_of_ours = load_study(path, out=tmp_path)
    assert study_of_ours.chosen([]) == list(study_of_ours.arms)
    arms = study_of_ours.arms
    recipes = [recipe for runs in arms.values() for recipe in runs.values()]
    assert len({recipe.data.split_seed for recipe in recipes}) == 1
    seen: set[bytes] = set()
    tested: set[bytes] = set()
    for recipe in {recipe.data: recipe for recipe in recipes}.values():
        try:
            data = load_training_data(recipe)
        except DataError as error:
            pytest.skip(f"its images are not here: {error}")
        trained_on = [data.id.train, data.id.validation, *(data.auxiliary.parts if data.auxiliary is not None else ())]
        seen |= {digest for source in trained_on for digest in image_digests(source)}
        # Sets that are allowed by name share pictures, as CIFAR-10's and CIFAR-100's do.
        test = {recipe.data.id_test: data.id.test, **data.ood}
        strict = [source for name, source in test.items() if name not in recipe.data.allow_shared]
        tested |= {digest for source in strict for digest in image_digests(source)}
    assert seen
    assert tested
    assert not seen & tested


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (5400, "1.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
