"""Auxiliary outliers of several sets, and sets that share pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from certood.cli import main
from certood.data import AuxiliarySet, ImageSet, joined, require_disjoint
from certood.data.auxiliary import Pool, draw
from certood.errors import DataError, RecipeError
from certood.train.batches import plan_epoch, seeded_generator
from certood.train.recipe import load_recipe
from certood.train.setup import load_training_data


def numbered(name: str, first: int, count: int, side: int = 2) -> ImageSet:
    """Images that are their own number in every pixel."""
    values = torch.arange(first, first + count, dtype=torch.uint8)
    return ImageSet(name, values[:, None, None, None].expand(-1, 1, side, side).contiguous())


def values(source: AuxiliarySet, indices: list[int]) -> list[int]:
    return source.batch(torch.tensor(indices, dtype=torch.int64))[:, 0, 0, 0].tolist()


def test_several_sets_are_one_after_the_other() -> None:
    both = joined([numbered("a", 0, 5), numbered("b", 100, 3)], [1, 1])
    assert len(both) == 8
    assert values(both, [7, 0, 5, 4]) == [102, 0, 100, 4]
    assert values(both, []) == []
    some = both.subset(torch.tensor([6, 1, 0]))
    assert values(some, [0, 1, 2]) == [101, 1, 0]
    assert values(some.subset(torch.tensor([2, 0])), [0, 1]) == [0, 101]
    assert [pool.indices.tolist() for pool in some.pools] == [[1, 2], [0]]
    assert [pool.indices.tolist() for pool in some.subset(torch.tensor([0])).pools] == [[0]]
    with pytest.raises(DataError, match="one shape"):
        joined([numbered("a", 0, 5), numbered("b", 0, 5, side=3)], [1, 1])


def test_the_fingerprint_is_that_of_sets_order_and_weights() -> None:
    a, b = numbered("a", 0, 5), numbered("b", 100, 3)
    made = joined([a, b], [1, 1])
    others = [
        joined([b, a], [1, 1]),
        joined([a, b], [1, 2]),
        joined([a, numbered("b", 101, 3)], [1, 1]),
        made.subset(torch.tensor([1, 0])),
    ]
    assert len({made.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert made.fingerprint == joined([a, b], [1, 1]).fingerprint


def test_each_pool_gives_its_share_in_whole_passes() -> None:
    pools = [Pool(torch.arange(10), 3.0), Pool(torch.arange(10, 14), 1.0)]
    drawn = draw(pools, 80, torch.Generator().manual_seed(0))
    counts = drawn.bincount(minlength=14)
    assert counts[:10].tolist() == [6] * 10
    assert counts[10:].tolist() == [5] * 4
    # Mixed, not one set after the other: no quarter of the stream lacks the second set.
    assert all((part >= 10).any() for part in drawn.split(20))
    odd = draw(
        [Pool(torch.arange(3), 1.0), Pool(torch.arange(3, 6), 1.0), Pool(torch.arange(6, 9), 1.0)],
        20,
        torch.Generator(),
    )
    assert sorted((odd // 3).bincount().tolist()) == [6, 7, 7]
    # Of shares 4.2, 2.9 and 2.9 the two that rounding leaves go to the last two.
    unequal = [Pool(torch.arange(3 * index, 3 * index + 3), weight) for index, weight in enumerate((4.2, 2.9, 2.9))]
    assert (draw(unequal, 10, torch.Generator()) // 3).bincount().tolist() == [4, 3, 3]
    none = draw([Pool(torch.arange(3), 1e9), Pool(torch.arange(3, 6), 1e-9)], 5, torch.Generator())
    assert (none < 3).all()


def test_one_set_is_drawn_as_it_always_was() -> None:
    plan = plan_epoch(
        3, 1, images=8, batch_size=4, steps=2, auxiliary=joined([numbered("a", 0, 5)], [7]).pools, candidates=6
    )
    generator = seeded_generator(3, 1, 1)
    expected = torch.cat([torch.randperm(5, generator=generator) for _ in range(3)])[:12].view(2, 6)
    assert plan.candidate_indices is not None
    assert torch.equal(plan.candidate_indices, expected)


DIGITS = ["run.device=cpu", "data.ood=['digits-near']"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.auxiliary=digits-photo", [("digits-photo", 1.0)]),
        ("data.auxiliary=['digits-photo', 'digits-smooth']", [("digits-photo", 1.0), ("digits-smooth", 1.0)]),
        (
            "data.auxiliary=['digits-photo', {set = 'digits-smooth', weight = 2.5}]",
            [("digits-photo", 1.0), ("digits-smooth", 2.5)],
        ),
        ("data.auxiliary={set = 'digits-smooth', weight = 2}", [("digits-smooth", 2.0)]),
    ],
)
def test_a_recipe_names_one_set_or_several(setting: str, expected: list[tuple[str, float]]) -> None:
    recipe = load_recipe("digits-greg", [*DIGITS, setting])
    assert [(item.set, item.weight) for item in recipe.data.auxiliary] == expected
    auxiliary = load_training_data(recipe).auxiliary
    assert auxiliary is not None
    assert list(zip([part.name for part in auxiliary.parts], auxiliary.weights, strict=True)) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.auxiliary=['digits-photo', 'digits-photo']", "a set is named twice"),
        ("data.auxiliary=[{set = 'digits-photo', weight = 0}]", "greater than 0"),
        ("data.auxiliary=[{set = 'digits-photo', weight = inf}]", "finite"),
        ("data.auxiliary=[{set = 'digits-photo', wieght = 2}]", "wieght"),
        ("data.auxiliary=[{weight = 2}]", "set"),
        ("data.auxiliary=[3]", "data.auxiliary"),
        ("data.auxiliary=", "needs data.auxiliary"),
        ("data.auxiliary=[]", "needs data.auxiliary"),
    ],
)
def test_what_is_no_list_of_sets_is_refused(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits-greg", [*DIGITS, setting])


def test_the_same_set_is_not_trained_on_and_tested_on() -> None:
    ood = "data.ood=['digits-near', 'digits-photo']"
    with pytest.raises(
        DataError, match=r"digits-photo \(auxiliary outliers\) and digits-photo \(test .*\) are the same set"
    ):
        load_training_data(load_recipe("digits-greg", [ood, "data.auxiliary=digits-photo"]))
    allowed = load_recipe("digits-greg", [ood, "data.auxiliary=digits-photo", "data.allow_shared=digits-photo"])
    assert load_training_data(allowed).auxiliary is not None
    with pytest.raises(DataError, match="are the same set"):
        load_training_data(load_recipe("digits-greg", ["data.auxiliary=digits-near?classes=8", "data.ood=digits-near"]))
    apart = ["data.auxiliary=digits-near?classes=8", "data.ood=digits-near?classes=9"]
    assert load_training_data(load_recipe("digits-greg", apart)).auxiliary is not None


def test_sets_of_different_names_that_share_a_picture_are_found_by_their_pixels() -> None:
    one, two = numbered("a", 0, 50), numbered("b", 49, 50)
    with pytest.raises(
        DataError, match=r"a \(outliers\) and b \(test\) share 1 pictures; .*data.allow_shared = \[\"b\"\]"
    ):
        require_disjoint({"outliers": [one], "test": [two]})
    for allowed in (["a"], ["b"]):
        require_disjoint({"outliers": [one], "test": [two]}, allowed)
    require_disjoint({"outliers": [one], "test": [numbered("c", 50, 50)]})
    require_disjoint({"test": [one, two]})
    # Equal bytes of another shape are another picture.
    wide = ImageSet("wide", torch.full((1, 1, 2, 8), 7, dtype=torch.uint8))
    square = ImageSet("square", torch.full((1, 1, 4, 4), 7, dtype=torch.uint8))
    require_disjoint({"outliers": [wide], "test": [square]})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def npz(path: Path, images: np.ndarray, **more: np.ndarray) -> str:
    np.savez(path, images=images, **more)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with outliers of its own, and the folder of its sets."""
    root = tmp_path_factory.mktemp("sets")
    generator = np.random.default_rng(0)
    npz(
        root / "id.npz",
        generator.integers(0, 256, (80, 8, 8), dtype=np.uint8),
        labels=np.arange(80) % 2,
        classes=np.array(["a", "b"]),
    )
    npz(root / "aux.npz", generator.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    settings = [
        "data.id=npz:id.npz",
        "data.auxiliary=npz:aux.npz",
        "data.ood=[]",
        f"data.root={root}",
        "training.epochs=1",
        "training.batch_size=8",
        "run.device=cpu",
    ]
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = run("train", "digits-greg", "--out", str(root / "run"), *arguments)
    assert result.exit_code == 0, result.output
    return root / "run", root


def test_evaluation_on_the_runs_own_outliers_must_be_allowed_by_name(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, root = trained
    copied = f"npz:{tmp_path / 'copied.npz'}"
    (tmp_path / "copied.npz").write_bytes((root / "aux.npz").read_bytes())
    out = str(tmp_path / "evaluation.json")
    result = run("evaluate", str(folder), "--ood", copied, "--out", out)
    assert result.exit_code == 2
    assert "share 40 pictures" in result.stderr
    assert run("evaluate", str(folder), "--ood", copied, "--allow-shared", copied, "--out", out).exit_code == 0


def test_permuted_and_fewer_classes_are_noticed(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    images = np.random.default_rng(5).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for classes, message in ((["b", "a"], "class 0 is 'b', expected 'a'"), (["a", "c"], "missing b; unexpected c")):
        name = npz(tmp_path / "x.npz", images, labels=np.arange(40) % 2, classes=np.array(classes))
        result = run("evaluate", str(folder), "--id", name, "--out", str(tmp_path / "e.json"))
        assert result.exit_code == 2
        assert message in result.stderr


def test_markup_in_names_of_sets_is_text(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    # A file called "]" in a folder called "[b]x[": the name ends in a closing tag.
    (tmp_path / "[b]x[").mkdir()
    npz(tmp_path / "x.npz", np.random.default_rng(6).integers(0, 256, (9, 8, 8), dtype=np.uint8))
    (tmp_path / "x.npz").rename(tmp_path / "[b]x[" / "]")
    (tmp_path / "id.npz").write_bytes((folder.parent / "id.npz").read_bytes())
    arguments = ["--data-root", str(tmp_path), "--out", str(tmp_path / "e.json")]
    result = run("evaluate", str(folder), "--ood", "npz:[b]x[/]", *arguments)
    assert result.exit_code == 0, result.output
    assert "npz:[b]x[/]" in result.output
    assert run("data", "check", "npz:[b]x[/]", "--data-root", str(tmp_path)).exit_code == 0


@pytest.mark.parametrize("size", ["-1", "0", "99999"])
def test_data_check_refuses_a_size_that_is_none(size: str) -> None:
    result = run("data", "check", "digits", "--size", size)
    assert result.exit_code == 2
    assert "size is a number of pixels from 1 to 4096" in result.stderr
    assert "Traceback" not in result.output
