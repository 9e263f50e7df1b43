"""OpenOOD's image lists, its definitions of metrics against direct counts, and its table of results."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from certood.cli import main
from certood.data import load_set
from certood.errors import CertoodError, DataError
from certood.openood import openood_csv, openood_metrics

numbers = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


def false_positive_rate(inside: list[float], outside: list[float]) -> float:
    """The share of ID at or above the highest threshold that finds 95 % of OOD, counted threshold by threshold."""
    for threshold in sorted({*inside, *outside}, reverse=True):
        if sum(score >= threshold for score in outside) >= 0.95 * len(outside):
            return sum(score >= threshold for score in inside) / len(inside)
    raise AssertionError


def trapezoids(positive: list[float], negative: list[float]) -> float:
    """The area below precision over recall, joined by straight lines from (0, 1), high scores being found first."""
    area, recall, precision = 0.0, 0.0, 1.0
    for threshold in sorted({*positive, *negative}, reverse=True):
        true = sum(score >= threshold for score in positive)
        found = true + sum(score >= threshold for score in negative)
        area += (true / len(positive) - recall) * (true / found + precision) / 2
        recall, precision = true / len(positive), true / found
    return area


@settings(max_examples=60, deadline=None)
@given(numbers, numbers)
def test_the_metrics_are_direct_counts(inside: list[float], outside: list[float]) -> None:
    found = openood_metrics(np.array(inside), np.array(outside))
    assert found["fpr95"] == pytest.approx(false_positive_rate(inside, outside))
    assert found["aupr_out"] == pytest.approx(trapezoids(outside, inside))
    assert found["aupr_in"] == pytest.approx(trapezoids([-s for s in inside], [-s for s in outside]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(4):
        path = tmp_path / "data" / "pictures" / f"a picture {index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 6), 10 * index, np.uint8)).save(path)
    return tmp_path / "data"


def listed(root: Path, text: str) -> str:
    (root.parent / "list.txt").write_text(text)
    return f"imglist:{root.parent / 'list.txt'}"


def test_a_list_names_pictures_below_the_root_and_their_labels(root: Path) -> None:
    found = load_set(listed(root, "pictures/a picture 2.png 3\n\npictures/a picture 1.png 0\n"), root=root)
    assert found.classes == ("0", "1", "2", "3")
    assert found.labels is not None
    assert found.labels.tolist() == [3, 0]
    assert found.batch(torch.arange(2))[:, 0, 0, 0].tolist() == [20, 10]


def test_a_list_of_outliers_has_no_labels_and_takes_options(root: Path) -> None:
    name = listed(root, "pictures/a picture 2.png -1\npictures/a picture 1.png -1\n")
    found = load_set(f"{name}?colour=rgb&pad=8", root=root)
    assert (found.labels, found.classes, found.shape) == (None, (), (3, 8, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("pictures/0.png", r"list.txt:1: expected a path, a space and a label"),
        ("pictures/0.png cat", "expected a path, a space and a label"),
        ("pictures/0.png ٣", "expected a path, a space and a label"),
        ("pictures/0.png -2", "from 0 to 1,000,000, or -1 for none, found -2"),
        ("/etc/0.png 0", "start at data.root .* absolute /etc/0.png"),
        (
            "pictures/9.png 0",
            "there is no .*pictures/9.png, which .*list.txt names; paths of a list start at data.root",
        ),
        ("pictures/a picture 1.png 0\npictures/a picture 2.png -1", "1 of 2 lines .* have the label -1"),
    ],
)
def test_a_list_that_is_none_is_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_set(listed(root, text), root=root)


def test_a_missing_list_says_where_it_was_looked_for(root: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the list .*data/no.txt .*No such file.*below --data-root"):
        load_set("imglist:no.txt", root=root)


def numbers_of(value: float) -> dict[str, object]:
    theirs = {"fpr95": value, "aupr_in": value + 0.01, "aupr_out": value + 0.02}
    return {"auroc": value + 0.03, "openood": theirs}


def test_the_table_groups_near_and_far_sets_with_their_means() -> None:
    sets = {"svhn": numbers_of(0.5), "cifar100": numbers_of(0.1), "mnist": numbers_of(0.3)}
    result = {"accuracy": 0.9, "near": ["cifar100"], "scores": {"msp": {"sets": sets}}}
    rows = list(csv.reader(io.StringIO(openood_csv(result, "msp"))))
    assert rows[0] == ["dataset", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
    assert [row[0] for row in rows[1:]] == ["cifar100", "nearood", "svhn", "mnist", "farood"]
    assert rows[-1] == ["farood", "40.00", "43.00", "41.00", "42.00", "90.00"]
    del result["near"]
    assert [row[0] for row in csv.reader(io.StringIO(openood_csv(result, "msp")))][1:] == [*sets, "mean"]
    with pytest.raises(CertoodError, match="no score 'energy'; it has msp"):
        openood_csv(result, "energy")
    del sets["svhn"]["openood"]
    with pytest.raises(CertoodError, match="of an earlier certood"):
        openood_csv(result, "msp")


def test_the_command_writes_the_table_and_keeps_the_groups(tmp_path: Path) -> None:
    """Class names of the bundled digits stand beside the architecture's weights, fresh ones."""
    from certood.models import build_model

    torch.manual_seed(0)
    model = build_model("small-cnn", num_classes=6, input_shape=(1, 8, 8), mean=(0.0,), std=(1.0,))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    command = ["evaluate", str(tmp_path / "weights.pt"), "--architecture", "small-cnn", "--classes", "6"]
    command += ["--input-shape", "1,8,8", "--id", "digits", "--ood", "digits-near", "--ood", "digits-smooth"]
    command += ["--near", "digits-near", "--openood-csv", str(tmp_path / "ood.csv")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "mean of near sets" in result.output
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["near"] == ["digits-near"]
    assert found["scores"]["energy"]["far"]["auroc"] == found["scores"]["energy"]["sets"]["digits-smooth"]["auroc"]
    rows = list(csv.DictReader((tmp_path / "ood.csv").open()))
    assert [row["dataset"] for row in rows] == ["digits-near", "nearood", "digits-smooth", "farood"]
    measured = found["scores"]["energy"]["sets"]["digits-near"]
    assert rows[0]["AUROC"] == f"{100 * measured['auroc']:.2f}"
    assert rows[0]["FPR@95"] == f"{100 * measured['openood']['fpr95']:.2f}"
    (tmp_path / "ood.csv").write_text("mine")
    assert CliRunner().invoke(main, command).exit_code == 2
    assert (tmp_path / "ood.csv").read_text() == "mine"
    wrong = CliRunner().invoke(main, [*command[:-4], "--near", "svhn"])
    assert wrong.exit_code == 2
    assert "expected one of digits-near, digits-smooth" in wrong.output
