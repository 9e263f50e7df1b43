"""Splits: which image is where, its record, and training that starts from weights that have seen too much."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from certood.checkpoints import load_checkpoint
from certood.data import ImageSet, Split, load_id, load_set, require_same_classes, seen_in_training
from certood.data.hashing import image_digests
from certood.errors import CertoodError, DataError
from certood.runs.data import load_run_data
from certood.train.loop import fit
from certood.train.recipe import load_recipe

SHORT = ["training.epochs=1", "run.device=cpu", "training.steps_per_epoch=2", "data.ood=[]"]


def arrays(count: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (count, 6, 6), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count) % 3, "classes": np.array(["a", "b", "c"])}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", **arrays())
    np.savez(tmp_path / "t.npz", **arrays(30, seed=1))
    return tmp_path


def test_the_record_names_the_images_of_every_part(root: Path) -> None:
    splits = load_id("npz:x.npz", root=root, validation=0.2, seed=5)
    assert splits.split is not None
    restored = Split.from_plain(json.loads(json.dumps(splits.split.to_plain())))
    assert restored == splits.split
    pixels = torch.from_numpy(arrays()["images"])[:, None]
    everything = torch.arange(60)
    for part, mask in [
        (splits.train, restored.trained()),
        (splits.validation, restored.held_out("validation")),
        (splits.test, restored.held_out("test")),
    ]:
        assert torch.equal(part.batch(torch.arange(len(part))), pixels[mask])
        everything = everything[~torch.isin(everything, mask.nonzero().flatten())]
    assert not len(everything)


def test_a_recorded_split_wins_over_seed_and_share(root: Path) -> None:
    made = load_id("npz:x.npz", root=root, validation=0.2, seed=5)
    again = load_id("npz:x.npz", root=root, validation=0.4, seed=6, recorded=made.split)
    assert again.train.fingerprint == made.train.fingerprint
    assert again.test.fingerprint == made.test.fingerprint
    # The same images under another name are the same images.
    (root / "moved.npz").write_bytes((root / "x.npz").read_bytes())
    moved = load_id("npz:moved.npz", root=root, seed=6, recorded=made.split)
    assert moved.test.fingerprint == made.test.fingerprint


def test_changed_images_are_noticed_where_a_split_was_recorded(root: Path) -> None:
    made = load_id("npz:x.npz", root=root)
    changed = arrays()
    changed["images"][7, 2, 3] ^= 1
    np.savez(root / "x.npz", **changed)
    with pytest.raises(DataError, match="is not the set that the detector was trained on"):
        load_id("npz:x.npz", root=root, recorded=made.split)


def test_test_images_of_their_own_are_remembered(root: Path) -> None:
    made = load_id("npz:x.npz", root=root, test="npz:t.npz")
    assert made.split is not None
    assert made.split.test_images == ""
    again = load_id("npz:x.npz", root=root, recorded=made.split)
    assert again.test.fingerprint == load_set("npz:t.npz", root=root).fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", 61_000),
        ("count", True),
        ("validation_images", "AAAA"),
        ("validation_images", "no base64!"),
        ("seed", "3"),
        ("validation", None),
        ("id_test", 4),
        ("other", 1),
    ],
)
def test_a_damaged_record_is_one_error(root: Path, key: str, value: object) -> None:
    split = load_id("npz:x.npz", root=root).split
    assert split is not None
    with pytest.raises(DataError, match="record"):
        Split.from_plain(split.to_plain() | {key: value})
    with pytest.raises(DataError, match="both validation and test"):
        Split.from_plain(split.to_plain() | {"validation_images": split.test_images})


def test_images_seen_in_training_are_counted(root: Path) -> None:
    start = load_id("npz:x.npz", root=root, validation=0.2, seed=1)
    now = load_id("npz:x.npz", root=root, validation=0.2, seed=2)
    assert start.split is not None
    trained = set(image_digests(start.train))
    expected = sum(digest in trained for part in (now.validation, now.test) for digest in image_digests(part))
    assert expected > 10
    assert seen_in_training(start.split, now, root=root) == expected
    assert seen_in_training(start.split, start, root=root) == 0
    # Part of the same images in a set of another name: only their pixels tell.
    some = {key: value[:30] if len(value) == 60 else value for key, value in arrays().items()}
    np.savez(root / "some.npz", **some)
    other = load_id("npz:some.npz", root=root, validation=0.2, seed=2)
    expected = sum(digest in trained for part in (other.validation, other.test) for digest in image_digests(part))
    assert expected > 0
    assert seen_in_training(start.split, other, root=root) == expected
    (root / "x.npz").unlink()
    assert seen_in_training(start.split, other, root=root) is None


def test_a_test_set_that_was_trained_on_is_seen(root: Path) -> None:
    start = load_id("npz:t.npz", root=root, seed=1)
    now = load_id("npz:x.npz", root=root, test="npz:t.npz")
    assert start.split is not None
    assert seen_in_training(start.split, now, root=root) == len(start.train)


def test_training_does_not_start_from_weights_that_saw_held_out_images(tmp_path: Path) -> None:
    fit(load_recipe("digits-ce", [*SHORT, "data.split_seed=3"]), tmp_path / "start", progress=False)
    stored = load_checkpoint(tmp_path / "start").split
    assert stored == load_id("digits", root=Path("data"), validation=0.2, seed=3).split
    init = f"training.init={tmp_path / 'start'}"
    with pytest.raises(DataError, match=r"was trained on \d+ of the images .*data.split_seed=3"):
        fit(load_recipe("digits-ce", [*SHORT, init]), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
    fine = load_recipe("digits-ce", [*SHORT, init, "data.split_seed=3", "run.seed=8"])
    assert fit(fine, tmp_path / "fine", progress=False).split == stored


def test_the_split_does_not_follow_the_seed_of_the_run(tmp_path: Path) -> None:
    runs = [
        fit(load_recipe("digits-ce", [*SHORT, f"run.seed={seed}"]), tmp_path / str(seed), progress=False)
        for seed in (0, 1)
    ]
    assert runs[0].split == runs[1].split


@pytest.mark.parametrize(
    ("tables", "seed"),
    [("[run]\nseed = 3\n[data]\nsplit_seed = 4", 4), ("[run]\nseed = 3\n[data]", 3), ("[data]", 0)],
)
def test_the_data_of_a_run_are_split_by_its_own_seed(tables: str, seed: int, root: Path) -> None:
    """Split by another seed, training images would be tested on."""
    (root / "run").mkdir()
    text = f'{tables}\nid = "npz:x.npz"\nood = []\nroot = "{root.as_posix()}"\nvalidation = 0.2\n'
    (root / "run" / "recipe.toml").write_text(text, "utf-8")
    found, _ = load_run_data(root / "run")
    for other in (seed, seed + 1):
        expected = load_id("npz:x.npz", root=root, validation=0.2, seed=other)
        for one, two in ((found.train, expected.train), (found.test, expected.test)):
            same = torch.equal(one.batch(torch.arange(len(one))), two.batch(torch.arange(len(two))))
            assert same == (other == seed)


def test_classes_are_compared_by_name_and_order() -> None:
    def labelled(*classes: str) -> ImageSet:
        count = len(classes)
        return ImageSet("x", torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.arange(count), classes)

    require_same_classes(("cat", "dog"), labelled("cat", "dog"), "the network's classes")
    require_same_classes(("0", "1"), labelled("cat", "dog"), "the network's classes")
    with pytest.raises(DataError, match="class 0 is 'dog', expected 'cat'"):
        require_same_classes(("cat", "dog"), labelled("dog", "cat"), "the network's classes")
    with pytest.raises(DataError, match="2 expected, 1 found; missing dog"):
        require_same_classes(("cat", "dog"), labelled("cat"), "the network's classes")
    with pytest.raises(DataError, match="3 expected, 2 found"):
        require_same_classes(("0", "1", "2"), labelled("cat", "dog"), "the network's classes")


@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1"])
def test_an_impossible_share_is_an_error(value: str) -> None:
    with pytest.raises(CertoodError, match=r"data\.validation"):
        load_recipe("digits-ce", [f"data.validation={value}"])


@pytest.fixture
def trained(root: Path) -> Path:
    run = root / "run"
    own = ["data.id=npz:x.npz", f"data.root={root}", "data.auxiliary=", "training.batch_size=8", "data.validation=0.2"]
    fit(load_recipe("digits-ce", [*SHORT, *own]), run, progress=False)
    return run


def test_a_set_that_is_named_for_testing_is_compared_with_the_training_images(trained: Path) -> None:
    split = load_checkpoint(trained / "checkpoint.safetensors").split
    for name, message in (("npz:x.npz", "are the same set"), ("npz:copy.npz", r"share 39 pictures")):
        (trained.parent / "copy.npz").write_bytes((trained.parent / "x.npz").read_bytes())
        with pytest.raises(DataError, match=message):
            load_run_data(trained, id_test=name, recorded=split)
    splits, _ = load_run_data(trained, id_test="npz:t.npz", recorded=split)
    assert len(splits.test) == 30
    assert list(splits.roles) == ["ID training images", "ID test images"]


def test_official_test_images_that_are_named_are_not_compared(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr("certood.data.splits.has_official_test", lambda name: name == "npz:x.npz")
    named = load_id("npz:x.npz", root=root, test="npz:x.npz?images=20")
    assert len(named.test) == 20
    assert list(named.roles) == ["ID images"]
    assert list(load_id("npz:x.npz", root=root).roles) == ["ID images"]
    assert len(load_id("npz:x.npz", root=root, test="npz:t.npz").roles) == 2


@pytest.mark.parametrize("view", ["npz:x.npz?images=30", "npz:order.npz"])
def test_another_view_of_the_training_images_is_not_held_out(trained: Path, view: str) -> None:
    order = np.random.default_rng(2).permutation(60)[:50]
    own = arrays()
    np.savez(
        trained.parent / "order.npz", images=own["images"][order], labels=own["labels"][order], classes=own["classes"]
    )
    split = load_checkpoint(trained / "checkpoint.safetensors").split
    with pytest.raises(
        DataError, match=r"was trained on \d+ of the images of npz:.* leave --id out .*--allow-shared npz:"
    ):
        load_run_data(trained, id_name=view, recorded=split)
    # Who says that it may share, by the option that the message names, measures it all the same.
    assert load_run_data(trained, id_name=view, recorded=split, allow_shared=[view])[0].split != split
    # What was never trained on may be anybody's test images.
    assert len(load_run_data(trained, id_name="npz:t.npz", recorded=split)[0].test) == 6


def test_a_number_of_images_does_not_cut_official_test_images_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 55 <= len(load_id("digits?images=300", root=Path()).test) <= 65
    monkeypatch.setattr("certood.data.splits.has_official_test", lambda name: True)
    with pytest.raises(
        DataError, match=r"images= would cut its official test images as well; name these.*such as digits"
    ):
        load_id("digits?images=300", root=Path())
