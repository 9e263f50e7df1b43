"""Comparisons over seeds: means, deviations and intervals against scipy and NumPy, arms by their recipes, and what is refused."""

import csv
import json
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner, Result
from scipy import stats

from certood.analysis import compare
from certood.analysis.reporting.comparison import COMPARED, Line, paired_difference
from certood.analysis.reporting.comparison_formats import comparison_tables, notes
from certood.cli import main
from certood.errors import CertoodError, RunDirectoryError
from certood.evaluation import METRICS

SETS = ("digits-near", "digits-photo", "digits-smooth")


def write_run(
    folder: Path,
    fpr95: Sequence[float] = (0.3, 0.2, 0.1),
    *,
    seed: int = 0,
    recipe: dict[str, Any] | None = None,
    scores: Sequence[str] = ("energy", "msp"),
    hashes: str = "a",
    sets: Sequence[str] = SETS,
) -> Path:
    """A run with this FPR95 by set; its other metrics are fixed functions of it, and MSP has twice the FPR95."""
    folder.mkdir(parents=True)
    tables = {"recipe": "digits-energy", "objective": {"name": "energy"}, **(recipe or {})}
    tables |= {"run": {"seed": seed, "device": "cpu"}, "record": {"torch": f"2.{seed}"}}
    (folder / "recipe.toml").write_text(tomli_w.dumps(tables), "utf-8")

    def measured(factor: int) -> dict[str, Any]:
        found = {}
        for name, value in zip(sets, fpr95, strict=True):
            rate = factor * value
            found[name] = {
                "n": 9,
                "fpr95": rate,
                "auroc": 1 - rate / 2,
                "aupr_in": 1 - rate / 3,
                "aupr_out": 1 - rate / 4,
            }
        return {"threshold": -1.0, "sets": found}

    content = {
        "accuracy": 0.9 + fpr95[0] / 10,
        "score": scores[0],
        "scores": {name: measured(place + 1) for place, name in enumerate(scores)},
        "image_sets": {"test": f"t{hashes}", "ood": {name: f"{name}{hashes}" for name in sets}},
    }
    (folder / "evaluation.json").write_text(json.dumps(content), "utf-8")
    return folder


RATES = {
    "energy": np.array([[0.30, 0.10, 0.05], [0.34, 0.12, 0.01], [0.29, 0.18, 0.03], [0.36, 0.02, 0.04]]),
    "greg": np.array([[0.21, 0.09, 0.02], [0.28, 0.11, 0.00], [0.19, 0.13, 0.05], [0.26, 0.03, 0.01]]),
}


@pytest.fixture
def arms(tmp_path: Path) -> list[Path]:
    """Two arms of four seeds, given seed by seed, not arm by arm."""
    greg = {"gradient": {"weight": 0.1}}
    return [
        write_run(
            tmp_path / f"{name}-{seed}", RATES[name][seed].tolist(), seed=seed, recipe=greg if name == "greg" else None
        )
        for seed in (2, 0, 3, 1)
        for name in RATES
    ]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def close(line: Line, values: "np.ndarray[Any, Any]") -> None:
    np.testing.assert_allclose(line.values, values)
    assert line.mean == pytest.approx(values.mean())
    assert line.deviation == pytest.approx(values.std(ddof=1))


def test_arms_whose_folders_are_called_alike_have_names_of_their_own(tmp_path: Path) -> None:
    """Two of a stem are called by their first runs, and a third may have that name already."""
    weights = {"gp-0": 0.1, "x/gp-1": 0.2, "y/gp-0-0": 0.3}
    paths = []
    for (name, weight), rate in zip(weights.items(), (0.1, 0.2, 0.3), strict=True):
        seed = int(name[-1])
        paths.append(write_run(tmp_path / name, [rate] * len(SETS), seed=seed, recipe={"gradient": {"weight": weight}}))
    found = run(*paths, "--json", tmp_path / "found.json")
    assert found.exit_code == 0, found.output
    arms = json.loads((tmp_path / "found.json").read_text())["arms"]
    assert sorted(path for arm in arms.values() for path in arm["runs"].values()) == sorted(map(Path.as_posix, paths))
    lines = json.loads((tmp_path / "found.json").read_text())["lines"]
    means = {line["arm"]: line["mean"] for line in lines if line["metric"] == "fpr95" and line["group"] == "all"}
    assert sorted(means.values()) == pytest.approx([10.0, 20.0, 30.0])
    assert set(means) == set(arms)


def test_sets_are_near_where_all_evaluations_say_so(arms: list[Path]) -> None:
    for place, run_path in enumerate(arms):
        file = run_path / "evaluation.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"near": ["digits-photo"]}))
        expected = {"near", "far", "all"} if place == len(arms) - 1 else {"all"}
        assert compare(arms).groups.keys() == expected
    assert compare(arms).groups["near"] == ("digits-photo",)
    assert compare(arms, near=["digits-near"]).groups["near"] == ("digits-near",)


def test_means_and_paired_intervals_are_those_of_numpy_and_scipy(arms: list[Path]) -> None:
    found = compare(arms, against="energy", near=["digits-near"])
    assert [(arm.name, arm.seeds) for arm in found.arms] == [("energy", [0, 1, 2, 3]), ("greg", [0, 1, 2, 3])]
    assert found.groups == {"near": SETS[:1], "far": SETS[1:], "all": SETS}
    for group, columns in {"near": [0], "far": [1, 2], "all": [0, 1, 2]}.items():
        rates = {name: 100 * values[:, columns].mean(1) for name, values in RATES.items()}
        for name, values in rates.items():
            close(found.find(name, "fpr95", group), values)
            close(found.find(name, "auroc", group), 100 - values / 2)
            close(found.find(name, "aupr_in", group), 100 - values / 3)
            close(found.find(name, "aupr_out", group), 100 - values / 4)
        difference = found.find("greg", "fpr95", group).difference
        expected = stats.ttest_rel(rates["greg"], rates["energy"]).confidence_interval(0.95)
        assert difference is not None
        assert (difference.low, difference.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
        assert difference.mean == pytest.approx((rates["greg"] - rates["energy"]).mean())
        assert difference.pairs == 4
        assert found.find("energy", "fpr95", group).difference is None
    close(found.find("greg", "accuracy"), 90 + 10 * RATES["greg"][:, 0])
    single = next(line for line in found.lines if line.sets == ("digits-photo",) and line.arm == "greg")
    assert (single.metric, single.group) == ("fpr95", "")
    close(single, 100 * RATES["greg"][:, 1])


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(-3.0, 2.0, (2000, 5))
    inside = [low.low < -3.0 < low.high for low in map(paired_difference, draws.tolist())]
    # Two thousand trials: 0.95 ± three standard errors.
    assert abs(np.mean(inside) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_seed_has_no_deviation_and_no_interval(arms: list[Path]) -> None:
    found = compare([path for path in arms if path.name.endswith("-2")])
    line = found.find("greg", "fpr95")
    assert math.isnan(line.deviation)
    assert line.difference is not None
    assert line.difference.mean == pytest.approx(100 * (RATES["greg"][2] - RATES["energy"][2]).mean())
    assert math.isnan(line.difference.low)
    assert found.against == "energy"


def test_arms_are_runs_that_differ_in_the_seed_and_in_where_they_ran(tmp_path: Path) -> None:
    elsewhere = write_run(tmp_path / "x" / "energy-1", seed=1)
    tables = (elsewhere / "recipe.toml").read_text().replace('device = "cpu"', 'device = "cuda:3"')
    (elsewhere / "recipe.toml").write_text(tables)
    paths = [write_run(tmp_path / "a" / "energy-0"), elsewhere]
    assert [arm.seeds for arm in compare(paths).arms] == [[0, 1]]
    # Of which detector a run is a modification differs in every seed, and how it was modified does not.
    changed = [
        write_run(tmp_path / "m" / f"react-{seed}", seed=seed, recipe={"modification": {"name": name, "of": f"{seed}"}})
        for seed, name in enumerate(("react", "react", "dice"))
    ]
    assert [arm.seeds for arm in compare(changed).arms] == [[0, 1], [2]]
    # A weight that differs makes another arm; both are called like their folders then.
    other = write_run(tmp_path / "b" / "energy-2", seed=2, recipe={"objective": {"name": "energy", "weight": 0.2}})
    found = compare([*paths, other])
    assert [(arm.name, arm.seeds) for arm in found.arms] == [("energy-0 and 1 more", [0, 1]), ("energy-2", [2])]
    assert found.find("energy-2", "fpr95").difference is None
    assert "The seeds of energy-2 and energy-0 and 1 more differ: no pair, and no difference." in notes(found)[-1]
    # Folders that are called otherwise give the recipe's name.
    assert [arm.name for arm in compare([paths[0], write_run(tmp_path / "later", seed=5)]).arms] == ["digits-energy"]


def test_pairs_are_of_the_same_seed(arms: list[Path]) -> None:
    left = [path for path in arms if path.name not in ("greg-0", "energy-3")]
    found = compare(left, against="energy").find("greg", "fpr95")
    assert found.difference is not None
    assert found.difference.pairs == 2
    expected = 100 * (RATES["greg"][1:3] - RATES["energy"][1:3]).mean()
    assert found.difference.mean == pytest.approx(expected)
    assert "The seeds of greg and energy differ: 1, 2 in common" in run(*left).output


def test_runs_measured_on_other_images_are_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a-0")
    with pytest.raises(
        RunDirectoryError, match=r"a-0 was evaluated on .*digits-smooth, and .*b-0 on digits-near, which"
    ):
        compare([first, write_run(tmp_path / "b-0", [0.1], sets=SETS[:1])])
    with pytest.raises(RunDirectoryError, match=r"different images of the same names \(their hashes differ\)"):
        compare([first, write_run(tmp_path / "c-0", hashes="b")])
    unmeasured = write_run(tmp_path / "d-0")
    (unmeasured / "evaluation.json").unlink()
    with pytest.raises(RunDirectoryError, match="evaluate"):
        compare([first, unmeasured])
    with pytest.raises(RunDirectoryError, match=r"same recipe with the same seed.*leave one out"):
        compare([first, write_run(tmp_path / "again" / "a-0")])


def test_seeds_that_were_trained_on_other_files_of_the_same_names_are_no_arm(tmp_path: Path) -> None:
    def trained(seed: int, **recorded: str) -> Path:
        path = write_run(tmp_path / f"a-{seed}", seed=seed)
        tables = tomllib.loads((path / "recipe.toml").read_text())
        tables["record"]["sha256"] = {name.replace("_", "-"): value for name, value in recorded.items()}
        (path / "recipe.toml").write_text(tomli_w.dumps(tables), "utf-8")
        return path

    one, two = trained(0, id_train="a", id_test="t"), trained(1, id_train="b", id_test="t")
    with pytest.raises(RunDirectoryError, match=r"a-0 and .*a-1 are one recipe, but were trained with .*\(id-train\)"):
        compare([one, two])
    # Test images are another matter, and what was not recorded differs from nothing.
    assert compare([one, trained(2, id_train="a", id_test="u"), trained(3)]).arms[0].seeds == [0, 2, 3]


def test_scores_that_differ_are_said_or_chosen(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "energy-0"),
        write_run(tmp_path / "oe-0", scores=("msp", "energy"), recipe={"objective": {"name": "outlier-exposure"}}),
    ]
    assert "different scores, each by its detector's own (energy: energy, oe: msp); --score" in run(*paths).output
    chosen = compare(paths, score="energy")
    assert chosen.find("energy", "fpr95").mean == pytest.approx(20)
    assert chosen.find("oe", "fpr95").mean == pytest.approx(40)
    found = run(*paths, "--score", "energy")
    assert "Score: energy." in found.output
    assert "--score compares" not in found.output
    with pytest.raises(CertoodError, match="not evaluated by the score 'entropy': expected one of energy, msp"):
        compare(paths, score="entropy")


def test_names_that_are_not_there_are_errors(arms: list[Path]) -> None:
    with pytest.raises(CertoodError, match="no arm 'gerg' to compare with: expected one of energy, greg"):
        compare(arms, against="gerg")
    with pytest.raises(CertoodError, match="no run has the OOD set 'svhn': expected one of digits-near"):
        compare(arms, near=["svhn"])
    with pytest.raises(CertoodError, match="at least one"):
        compare([])


def test_the_files_hold_every_number_and_replace_no_other_file(arms: list[Path], tmp_path: Path) -> None:
    files = tmp_path / "c.json", tmp_path / "c.csv", tmp_path / "c.html"
    asked = [
        *arms,
        "--near",
        "digits-near",
        "--against",
        "energy",
        "--json",
        files[0],
        "--csv",
        files[1],
        "--html",
        files[2],
    ]
    for _ in range(2):  # what it wrote itself is replaced
        found = run(*asked)
        assert found.exit_code == 0, found.output
    stored, rows = json.loads(files[0].read_text()), list(csv.DictReader(files[1].open()))
    assert len(stored["lines"]) == len(rows) == 2 + 2 * len(METRICS) * (3 + len(SETS))
    for line, row in zip(stored["lines"], rows, strict=True):
        assert {key: "" if value is None else str(value) for key, value in line.items() if key != "values"} == row
    greg = next(row for row in rows if (row["arm"], row["metric"], row["group"]) == ("greg", "fpr95", "far"))
    expected = 100 * (RATES["greg"][:, 1:].mean(1) - RATES["energy"][:, 1:].mean(1))
    assert float(greg["difference"]) == pytest.approx(expected.mean())
    assert float(greg["low"]) < float(greg["difference"]) < float(greg["high"])
    for option in ("--json", "--csv", "--html"):
        for foreign in (arms[0] / "evaluation.json", arms[0] / "recipe.toml"):
            before = foreign.read_bytes()
            refused = run(*arms, option, foreign)
            assert refused.exit_code == 2
            assert "was not written by this command" in refused.output
            assert foreign.read_bytes() == before


def test_the_tables_fit_a_terminal_of_80_columns(arms: list[Path]) -> None:
    found = run(*arms, "--near", "digits-near", "--by-set")
    assert found.exit_code == 0, found.output
    assert max(map(len, found.output.splitlines())) <= 80
    assert "…" not in found.output
    expected = 100 * RATES["greg"][:, 0]
    assert f"{expected.mean():.1f} ± {expected.std(ddof=1):.1f}" in found.output
    low, high = stats.ttest_rel(*(100 * RATES[name][:, 0] for name in ("greg", "energy"))).confidence_interval()
    assert f"−{-(low + high) / 2:.1f} ± {(high - low) / 2:.1f} *" in found.output
    assert found.output.count("greg") == 2 * len(COMPARED) + len(SETS)
    assert [len(table.heads) for table in comparison_tables(compare(arms), by_set=True)] == [5, 4, 5]


def test_the_leaderboard_has_where_runs_come_from_and_links_to_their_reports(arms: list[Path], tmp_path: Path) -> None:
    (arms[0] / "report.html").write_text("a report")
    out = tmp_path / "boards" / "board.html"
    found = run(*arms, "--near", "digits-near", "--html", out)
    assert found.exit_code == 0, found.output
    text = out.read_text("utf-8")
    links = re.findall(r'href="([^"#]*report[^"]*)"', text)
    assert [(out.parent / link).resolve() for link in links] == 2 * [(arms[0] / "report.html").resolve()]
    page = " ".join(re.sub(r"<[^>]+>", " ", text.partition("<body")[2]).split())
    assert "Near OOD: digits-near" in page
    assert "Far OOD: digits-photo, digits-smooth" in page
    assert f"{100 * RATES['greg'][:, 0].mean():.1f} ± {100 * RATES['greg'][:, 0].std(ddof=1):.1f}" in page
    assert "digits-energy" in page
    assert f"Without a report: {arms[2].as_posix()}" in page


def test_files_among_the_runs_are_skipped_and_named(arms: list[Path], tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("")
    found = run(tmp_path / "report.html", *arms)
    assert found.exit_code == 0, found.output
    assert f"Skipped, since these are files and no run directories: {tmp_path / 'report.html'}" in found.stderr
    alone = run(tmp_path / "report.html")
    assert (alone.exit_code, "expected run directories, got files" in alone.stderr) == (2, True)
