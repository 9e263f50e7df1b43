"""The report: its numbers are those of the files, runs that cannot be compared are not, and bad files are named."""

import csv
import dataclasses
import io
import json
import math
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.axes import Axes
from PIL import Image
from scipy import stats

from certood.analysis import certify, report
from certood.analysis.evidence.smoothing import MedianSmoothing
from certood.analysis.records import read_certificates
from certood.analysis.reporting import drawing, histograms
from certood.analysis.reporting.columns import Column, best_cells
from certood.analysis.reporting.curves import (
    POINTS,
    fractions,
    rejected_at,
    roc_curves,
    threat_curves,
    training_curves,
    write_fractions,
)
from certood.analysis.reporting.figures import share_above
from certood.analysis.reporting.formats import escape_latex
from certood.analysis.reporting.histograms import score_histograms
from certood.analysis.reporting.kinds import kinds_of_training, ood_groups, threat_curve
from certood.analysis.reporting.links import image_correlations, run_correlations, run_points, spearman
from certood.analysis.reporting.pictures import worst_images
from certood.analysis.reporting.provenance import commands, hashes
from certood.analysis.reporting.rendering import number
from certood.analysis.reporting.runs import read_runs
from certood.analysis.reporting.scatters import positive_pairs, scatters
from certood.analysis.reporting.summary import summary_rows
from certood.analysis.reporting.tables import (
    BENCHMARK,
    benchmark_rows,
    radius_rows,
    table_columns,
    tables,
    theory_rows,
)
from certood.analysis.reporting.verdict import verdict
from certood.analysis.settings import Settings
from certood.cli import LazyGroup, main
from certood.errors import CertoodError, LeftOutWarning, RunDirectoryError
from certood.train import fit
from tests.analysis.report_runs import EPS, RECIPE, certificate, certificates, write_run

INSIDE, NEAR = (0.0, 0.01, 0.03, 0.05, 0.07), (0.004, 0.0, 0.08)


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are blank: drawing them takes most of the time of a page, and is tested by itself."""
    monkeypatch.setattr(drawing, "drawn", lambda *_, **__: (Image.new("P", (1, 1)), ""))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A run that detects well, and one that is certified further."""
    return [
        write_run(tmp_path / "sharp", certificates(INSIDE, NEAR), fpr95=0.125, n=1000),
        write_run(tmp_path / "stiff", certificates([2 * r for r in INSIDE], NEAR), fpr95=0.5, n=1000),
    ]


def test_the_tables_are_the_numbers_of_the_files(two: list[Path]) -> None:
    runs = read_runs(two)
    stored = json.loads((two[1] / "certification.json").read_text())
    rows = {(row["run"], row["set"]): row for row in theory_rows(runs)}
    row, entry = rows["stiff", "digits"], stored["sets"]["digits"]
    assert row["radius_certified"] == entry["median_radius_certified"] == pytest.approx(0.06)
    assert row["radius_attack"] == entry["median_radius_attack"] == pytest.approx(0.12)
    assert row["certified"] == 100 * entry["certified_fraction"][0] == 80.0
    assert row["refuted"] == 20.0
    assert row["lipschitz_global"] == entry["median_lipschitz_global"] == 1234.5
    # Every column shows its own number: no two of the file are the same.
    for column, median in (("gradient_norm", 7.0), ("lipschitz_sampled", 8.0), ("radius_global", 0.06 / 8)):
        assert row[column] == pytest.approx(median)
    assert row["lipschitz_certified"] == entry["median_lipschitz_certified"][0] == 9.0
    assert row["gauc"] is None
    assert rows["stiff", "digits-near"]["gauc"] == 100 * stored["sets"]["digits-near"]["gauc"][0]
    benchmark = {(row["run"], row["set"]): row for row in benchmark_rows(runs)}
    assert benchmark["sharp", "mean"]["fpr95"] == 12.5
    assert benchmark["sharp", "mean"]["auroc"] == 87.5
    assert benchmark["stiff", "digits-near"]["accuracy"] == 87.5
    # At the smaller ε all but the wrong decision are certified.
    small = [row for row in radius_rows(runs) if row["eps"] == 0.005 and row["set"] == "digits"]
    assert [row["certified"] for row in small] == [80.0, 80.0]
    assert [row["lipschitz_certified"] for row in small] == [8.5, 8.5]
    # All runs of a set stand beside each other, and the mean comes last.
    assert [row["set"] for row in benchmark_rows(runs)][-2:] == ["mean", "mean"]
    assert [row["run"] for row in theory_rows(runs)] == ["sharp", "stiff"] * 2


@pytest.mark.usefixtures("blank")
def test_intervals_are_the_resampled_ones_else_exact(two: list[Path], tmp_path: Path) -> None:
    path = two[0] / "evaluation.json"
    stored = json.loads(path.read_text())
    stored["scores"][stored["score"]]["sets"]["digits-near"] |= {
        "fpr95_interval": [0.1, 0.2],
        "auroc_interval": [0.8, 0.9],
    }
    path.write_text(json.dumps(stored))
    rows = {(row["run"], row["set"]): row for row in benchmark_rows(read_runs(two))}
    found = [
        rows["sharp", "digits-near"][f"{metric}_{end}"] for metric in ("fpr95", "auroc") for end in ("low", "high")
    ]
    assert found == [10.0, 20.0, 80.0, 90.0]
    exact = stats.binomtest(125, 1000).proportion_ci(0.95, "exact")
    photo = rows["sharp", "digits-photo"]
    assert (photo["fpr95_low"], photo["fpr95_high"]) == (
        pytest.approx(100 * exact.low),
        pytest.approx(100 * exact.high),
    )
    # The mean over sets has the mean of their ends.
    assert rows["sharp", "mean"]["fpr95_high"] == pytest.approx((20 + 100 * exact.high) / 2)
    assert rows["sharp", "mean"]["aupr_in_low"] is None
    report(two, tmp_path / "r.html")
    assert 'title="95 % interval: 10.0 to 20.0"' in (tmp_path / "r.html").read_text("utf-8")
    assert "12.5 (10.0 to 20.0)" in report(two, format="latex")


def test_means_over_different_sets_do_not_compete(two: list[Path]) -> None:
    path = two[1] / "evaluation.json"
    stored = json.loads(path.read_text())
    for measured in stored["scores"].values():
        del measured["sets"]["digits-photo"]
    path.write_text(json.dumps(stored))
    rows = benchmark_rows(read_runs(two))
    means = [(row["run"], row["set"]) for row in rows[-2:]]
    assert means == [("sharp", "mean of digits-near, digits-photo"), ("stiff", "mean of digits-near")]
    # One of its kind is not marked as the best.
    assert not [cell for cell in best_cells(rows, BENCHMARK) if cell[0] >= len(rows) - 2]


def test_the_best_cell_is_the_best_of_its_set(two: list[Path], tmp_path: Path) -> None:
    rows = benchmark_rows(read_runs(two))
    best = best_cells(rows, BENCHMARK)
    assert {rows[index]["run"] for index, _ in best} == {"sharp"}
    assert {key for _, key in best} == {"fpr95", "auroc"}
    assert len(best) == 2 * 3
    near = [0.001 * index for index in range(1, 31)]
    paths = [
        write_run(tmp_path / name, certificates([0.05 * factor + radius for radius in near], near))
        for name, factor in (("a", 1), ("b", 2))
    ]
    theory = theory_rows(read_runs(paths))
    radii = [theory[index] for index, key in best_cells(theory, table_columns()["theory"]) if key == "radius_certified"]
    # The radii of digits-near are the same in both runs: nothing is best there.
    assert [(row["run"], row["set"]) for row in radii] == [("b", "digits")]


def test_nothing_is_best_where_an_interval_covers_the_difference() -> None:
    column = Column("x", "x", ".1f", lowest=True, alike=())

    def marked(*cells: tuple[float, float | None, float | None]) -> list[int]:
        rows = [{"x": value, "x_low": low, "x_high": high} for value, low, high in cells]
        return sorted(index for index, _ in best_cells(rows, [column]))

    assert marked((1, 0, 2), (3, 2.5, 4)) == [0]
    assert marked((1, 0, 2.6), (3, 2.5, 4)) == []
    # What reads the same is best together, and all that read the same are not.
    assert marked((1.01, 0, 2), (1, 0, 2), (3, 2.5, 4)) == [0, 1]
    assert marked((1, 1, 1), (1, 1, 1)) == []
    # One that is not told apart from the best leaves no best; nor does an interval that is not known.
    assert marked((1, 0, 2), (1.5, 1, 3), (9, 8, 10)) == []
    assert marked((1, 0, 2), (3, None, None)) == []
    assert marked((1, 0, 2)) == []


@pytest.mark.usefixtures("blank")
def test_runs_asked_different_things_are_not_compared(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "inf", certificates(INSIDE, NEAR)),
        write_run(tmp_path / "two", certificates([9 * r for r in INSIDE], NEAR), settings=Settings(eps=EPS, norm=2)),
        write_run(
            tmp_path / "other",
            certificates([5 * r for r in INSIDE], NEAR, eps=(0.01,)),
            settings=Settings(eps=(0.01,)),
        ),
    ]
    runs = read_runs(paths)
    assert best_cells(theory_rows(runs), table_columns()["theory"]) == set()
    # A figure for each norm and kind; the two l_inf runs share theirs.
    groups = {"all": ("digits-near",)}
    assert [(picture.alt.count("l∞"), picture.alt.count("l2")) for picture in fractions(runs, groups)] == [
        (1, 0)
    ] * 2 + [(0, 1)] * 2
    text = " ".join(verdict(runs))
    assert "l∞, pixels of the range 0 to 1): other with 0.1500 (smallest: inf with 0.0300)" in text
    assert "l2, pixels of the range 0 to 1): two with 0.2700" in text
    assert [(norm, len(points)) for norm, _, points in run_correlations(run_points(runs))] == [("inf", 2), ("2", 1)]
    page = tmp_path / "r.html"
    report(paths, page)
    assert "Rows with different norms or ε do not compare" in page.read_text("utf-8")


def change(folder: Path, **values: Any) -> Path:
    file = folder / "certification.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    "values",
    [
        {"score": "msp"},
        {"image_sets": {"digits": "ab", "digits-near": "cd"}},
        {"settings": Settings(eps=EPS, attack_steps=7).record()},
        {"settings": Settings(eps=EPS, smoothing=MedianSmoothing(0.3)).record()},
        {"settings": Settings(eps=EPS, parts=8).record()},
    ],
)
def test_seeds_that_were_asked_different_things_are_no_kind(tmp_path: Path, values: dict[str, Any]) -> None:
    paths = seeds(tmp_path, (0.2, 0.2))
    assert len(kinds_of_training(read_runs(paths))) == 1
    change(paths[0], settings=Settings(eps=EPS, seed=5).record())
    assert len(kinds_of_training(read_runs(paths))) == 1
    change(paths[1], **values)
    assert len(kinds_of_training(read_runs(paths))) == 2


@pytest.mark.parametrize("values", [{"score": "msp"}, {"image_sets": {"digits": "ab", "digits-near": "cd"}}])
@pytest.mark.parametrize("rows", [theory_rows, radius_rows])
def test_certificates_of_other_scores_or_images_do_not_compete(
    tmp_path: Path, rows: Callable[..., list[dict[str, Any]]], values: dict[str, Any]
) -> None:
    paths = [write_run(tmp_path / name, certificates(INSIDE, NEAR)) for name in ("a", "b")]

    def best() -> set[tuple[int, str]]:
        found = [row | {"x": i, "x_low": i, "x_high": i} for i, row in enumerate(rows(read_runs(paths)))]
        return best_cells(found, [Column("x", "x", ".1f", lowest=False)])

    assert best()
    change(paths[1], **values)
    assert not best()


@pytest.mark.parametrize("values", [{"method": "interval"}, {"settings": Settings(eps=EPS, parts=8).record()}])
def test_radii_by_different_methods_are_not_ranked(two: list[Path], values: dict[str, Any]) -> None:
    assert "Largest median certified radius" in " ".join(verdict(read_runs(two)))
    change(two[1], **values)
    text = " ".join(verdict(read_runs(two)))
    assert "The radii in l∞ of these runs are not ranked" in text
    assert "Largest median certified radius" not in text


def test_the_verdict_names_the_best_and_what_it_rests_on(two: list[Path]) -> None:
    text = " ".join(verdict(read_runs(two)))
    assert "Lowest mean FPR95: sharp with 12.5 % (highest: stiff with 50.0 %)." in text
    assert "stiff with 0.0600 (smallest: sharp with 0.0300)." in text
    assert "the run that detects best is not the one that is certified furthest" in text
    assert "rests on 2 runs, 2 of them certified, and on 16 certified images" in text


def test_spearman_of_a_hand_case_with_its_interval() -> None:
    first, second = np.array([1.0, 2, 3, 4, 5]), np.array([10.0, 30, 20, 50, 40])
    # 1 − 6 Σd² / (n(n² − 1)) with d = (0, 1, 1, 1, 1)
    value, low, high = spearman(first, second)
    assert value == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert -1 <= low < value < high <= 1
    assert spearman(first, -(first**3))[0] == pytest.approx(-1)
    assert all(math.isnan(part) for part in spearman(first, np.ones(5)))


def test_the_interval_covers_what_is_known_as_often_as_it_says_and_narrows() -> None:
    # The rank correlation of normal variables with correlation r is 6/π·asin(r/2).
    true, widths = 6 / math.pi * math.asin(math.sqrt(0.5) / 2), {}
    for count in (20, 200):
        found = []
        for seed in range(60):
            generator = np.random.default_rng(seed)
            first = generator.normal(size=count)
            found.append(spearman(first, first + generator.normal(size=count)))
        assert all(low < value < high for value, low, high in found)
        assert 0.85 <= np.mean([low < true < high for _, low, high in found]) <= 1
        widths[count] = np.mean([high - low for _, low, high in found])
    assert widths[200] < widths[20] / 2


def test_image_correlations_leave_out_wrong_decisions(tmp_path: Path) -> None:
    # Gradient norms rise with the index and radii fall; the wrong decision in the middle would break the order.
    records = [certificate("digits", "id", index, 0.0 if index == 5 else 0.2 - 0.01 * index) for index in range(12)]
    (run,) = read_runs([write_run(tmp_path / "run", records)])
    found = {(part.first, part.second): part for part in image_correlations(run)}
    link = found["gradient norm (estimate)", "certified radius"]
    assert (link.value, link.low, link.high, link.count) == (
        pytest.approx(-1),
        pytest.approx(-1),
        pytest.approx(-1),
        11,
    )
    assert found["gradient norm (estimate)", "certified Lipschitz constant"].value == pytest.approx(1)
    assert math.isnan(found["margin", "certified radius"].value)
    points = run_points([run])
    assert points[0].gradient_norm == pytest.approx(5 + 5.5)
    assert points[0].fpr95 == 0.25


def test_curves_count_every_image_and_never_a_wrong_one() -> None:
    radii = np.array([0.0, 0.0, 0.1, 0.3])
    np.testing.assert_allclose(share_above(radii, np.array([0, 0.1, 0.11, 0.3, 0.31])), [0.5, 0.5, 0.25, 0.25, 0])


def test_what_is_not_a_finite_positive_number_is_not_drawn(tmp_path: Path) -> None:
    records = [
        *certificates(INSIDE, NEAR),
        certificate("digits", "id", 7, 0.05, lipschitz_certified=math.inf),
        certificate("digits", "id", 8, 0.05, gradient_norm=0.0),
    ]
    right = [record for record in records if record.correct]
    assert len(positive_pairs(right, "id", "gradient_norm", "lipschitz_certified")) == 4
    (run,) = read_runs([write_run(tmp_path / "run", records)])
    assert "2 of 8 images" in scatters(run)[0].caption


def test_the_worst_images_and_their_pictures(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run", certificates(INSIDE, NEAR))])
    worst = worst_images(run, count=2)
    assert [(image.record.set, image.record.index, image.radius) for image in worst.fragile] == [
        ("digits-near", 0, 0.004),
        ("digits", 1, 0.01),
    ]
    assert [(image.record.set, image.record.index) for image in worst.wrong] == [("digits", 0), ("digits-near", 1)]
    assert worst.missing == ()
    assert all(image.picture is not None for image in (*worst.fragile, *worst.wrong))
    # With other images than those that were certified there is no picture rather than a wrong one.
    stored = json.loads((run.path / "certification_settings.json").read_text())
    stored["sets"]["digits"] = "0" * 64
    (run.path / "certification_settings.json").write_text(json.dumps(stored))
    worst = worst_images(read_runs([run.path])[0], count=2)
    assert worst.missing == ("digits",)
    assert [image.picture is None for image in worst.fragile] == [False, True]


def test_csv_joins_benchmark_and_theory(two: list[Path]) -> None:
    rows = list(csv.DictReader(io.StringIO(report(two, format="csv"))))
    # Two sets at two radii, a set that was evaluated only, and the mean.
    assert len(rows) == 2 * (2 * 2 + 2)
    assert None not in rows[0]
    near = [row for row in rows if (row["run"], row["set"], row["eps"]) == ("stiff", "digits-near", "0.02")]
    assert [(row["fpr95"], row["radius_certified"], row["norm"]) for row in near] == [("50.0", "0.004", "l∞")]
    (mean,) = [row for row in rows if (row["run"], row["set"]) == ("sharp", "mean")]
    assert (mean["fpr95"], mean["radius_certified"], mean["eps"]) == ("12.5", "", "")


def test_json_is_strict_and_the_same_as_the_rows(two: list[Path]) -> None:
    found = json.loads(report(two, format="json"), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert found.pop("schema_version") == 1
    assert found.pop("left_out") == []
    assert found == tables(read_runs(two))


def test_latex_is_balanced_and_escaped(tmp_path: Path) -> None:
    path = write_run(tmp_path / "ours_50%_α&ε", certificates(INSIDE, NEAR))
    text = report([path, write_run(tmp_path / "b", certificates(INSIDE, NEAR))], format="latex")
    assert text.isascii()
    assert r"ours\_50\%\_$\alpha$\&$\varepsilon$" in text
    for table in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith("\\\\")]
        assert len(rows) > 2
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(table[0]) - 1
            assert len(re.findall(r"(?<!\\)\$", row)) % 2 == 0
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert escape_latex(r"a\b~^<") == r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}\textless{}"


class Page(HTMLParser):
    """Every start tag has its end tag, and what the page would load."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: set[str | None] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.ids |= {value for name, value in attrs if name == "id"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    assert page.open == []
    assert all(link.startswith(("data:", "#")) for link in page.links)
    # Every entry of the table of contents leads somewhere.
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    page.text = " ".join(page.text.split())
    return page


@pytest.mark.usefixtures("blank")
def test_the_page_shows_numbers_commands_and_hashes_and_loads_nothing(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    assert report(two, out) == str(out)
    page = read_page(out)
    for part in (
        "sharp (γ = −1)",
        "none is violated",
        "12.5",
        "0.0600",
        "1234",
        "needs at least three that are both evaluated and certified in the same norm; in l∞ here are 2",
        "ab12",
        f"certood train {two[0].as_posix()}/recipe.toml --out {two[0].as_posix()}-again",
        "--norm inf --eps 0.02,0.005 --method crown --seed 0 --dtype float64 --limit 3",
        "torch 2.6.0",
        "wrongly rejected",
    ):
        assert part in page.text, part


@pytest.mark.usefixtures("blank")
def test_violations_are_said_at_the_top(tmp_path: Path) -> None:
    records = certificates(INSIDE, NEAR)
    records[0] = dataclasses.replace(records[0], violations=3)
    report([write_run(tmp_path / "run", records)], tmp_path / "r.html")
    text = read_page(tmp_path / "r.html").text
    assert "run: 3 inequalities that must hold do not" in text
    assert "none is violated" not in text


@pytest.mark.usefixtures("blank")
def test_smoothed_evaluated_and_foreign_runs_stand_beside_certified_ones(tmp_path: Path) -> None:
    noisy = [
        certificate("digits", "id", index, math.nan, score=-2.0, gradient_norm=math.nan, radius_smoothing=0.1 * index)
        for index in range(4)
    ]
    paths = [
        write_run(tmp_path / "certified", certificates(INSIDE, NEAR)),
        write_run(tmp_path / "evaluated"),
        write_run(tmp_path / "foreign", certificates(INSIDE, NEAR), fpr95=None, recipe=None),
        write_run(tmp_path / "smoothed", noisy, settings=Settings(eps=EPS, norm=2, method="smoothing")),
    ]
    runs = read_runs(paths)
    assert [row["run"] for row in theory_rows(runs)] == ["certified", "foreign"] * 2
    smoothing = tables(runs)["smoothing"]
    assert [(row["run"], row["radius_smoothing"], row["norm"]) for row in smoothing] == [
        ("smoothed", pytest.approx(0.15), "l2")
    ] * 2
    report(paths, tmp_path / "r.html")
    text = read_page(tmp_path / "r.html").text
    assert "This is probabilistic" in text
    assert "Radii of smoothed detectors are probabilistic" in text
    assert "No pictures of digits: not found here" in text
    assert "no command is known that makes this run again" not in text
    assert f"certood certify {paths[2].as_posix()} --norm inf" in text


def test_numbers_in_running_text() -> None:
    assert [number(value) for value in (None, math.nan, math.inf, -1.5, 0.12345)] == ["–", "–", "∞", "−1.5", "0.123"]


def test_runs_of_one_name_are_told_apart_and_none_counts_twice(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")
    assert [run.name for run in read_runs([one, two, one])] == [one.as_posix(), two.as_posix()]


@pytest.mark.usefixtures("blank")
def test_an_unfinished_certification_is_left_out_and_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", certificates(INSIDE, NEAR))
    table = path / "certificates.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:4]))
    (run,) = read_runs([path])
    assert run.certification is None
    assert "is about 8 images and certificates.csv has 3" in run.note
    with pytest.warns(LeftOutWarning, match="run: shown without certificates: certification.json is about 8 images"):
        report(path, tmp_path / "r.html")
    result = CliRunner().invoke(main, ["report", str(path), "--out", str(tmp_path / "r.html")])
    assert "Left out: run: shown without certificates: certification.json is about 8 images" in result.stderr
    assert "shown without certificates" in read_page(tmp_path / "r.html").text
    (row,) = json.loads(report(path, format="json"))["left_out"]
    assert row["run"] == "run"
    assert "is about 8 images and certificates.csv has 3" in row["why"]
    assert report(path, format="latex").startswith("% run: shown without certificates")
    (path / "certification.json").unlink()
    assert "has not ended" in read_runs([path])[0].note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", "{", "cannot read .*evaluation.json"),
        ("evaluation.json", "[]", r"evaluation.json is damaged: expected accuracy, scores"),
        (
            "certification.json",
            '{"norm": "inf"}',
            r"missing \['method', 'eps', 'sets', 'violations', 'settings', 'score', 'threshold'\]",
        ),
        ("certificates.csv", "set,kind\nx,y\n", "other columns"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write_run(tmp_path / "run", certificates(INSIDE, NEAR))
    (path / name).write_text(content)
    with pytest.raises(RunDirectoryError, match=message):
        report([path], format="json")


@pytest.mark.usefixtures("blank")
def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory"):
        report(tmp_path / "nowhere", format="json")
    with pytest.raises(RunDirectoryError, match="neither evaluation"):
        report(tmp_path, format="json")
    with pytest.raises(CertoodError, match="unknown format 'pdf'; expected one of html, json, csv, latex"):
        report(write_run(tmp_path / "run"), format="pdf")
    with pytest.raises(CertoodError, match="at least one"):
        report([])
    with pytest.raises(RunDirectoryError, match="cannot write"):
        report(write_run(tmp_path / "other"), tmp_path / "run" / "recipe.toml" / "r.html")


@pytest.mark.usefixtures("blank")
def test_the_command_writes_beside_a_single_run_and_prints_tables(two: list[Path], tmp_path: Path) -> None:
    def command(*words: str) -> Result:
        return CliRunner().invoke(main, ["report", *words])

    assert command(str(two[0])).output == f"Written: {two[0] / 'report.html'}\n"
    assert "sharp (γ = −1)" in read_page(two[0] / "report.html").text
    assert command(*map(str, two), "--format", "csv").output == report(two, format="csv")
    written = command(*map(str, two), "--format", "latex", "--out", str(tmp_path / "deep" / "t.tex"))
    assert written.exit_code == 0
    assert (tmp_path / "deep" / "t.tex").read_text("utf-8") == report(two, format="latex")
    failed = command(str(tmp_path / "nowhere"))
    assert (failed.exit_code, "no run directory" in failed.stderr) == (2, True)


def test_commands_name_what_differs_from_the_run(tmp_path: Path) -> None:
    recipe = RECIPE | {"data": RECIPE["data"] | {"id": "npz:mine.npz", "ood": ["digits-photo"]}}
    settings = Settings(eps=(8 / 255,), method="alpha-crown", parts=9, dtype="float32", iterations=7, seed=4)
    path = write_run(
        tmp_path / "a run", certificates(INSIDE, NEAR, eps=(8 / 255,)), settings=settings, recipe=recipe, limit=None
    )
    (run,) = read_runs([path])
    train, evaluate, certification = (shlex.split(line) for line in commands(run))
    assert train[:3] == ["certood", "train", f"{path.as_posix()}/recipe.toml"]
    assert evaluate == ["certood", "evaluate", f"{path.as_posix()}-again"]
    assert certification[2:] == [
        *(
            f"{path.as_posix()}-again",
            "--norm",
            "inf",
            "--eps",
            repr(8 / 255),
            "--method",
            "alpha-crown",
            "--seed",
            "4",
        ),
        *("--dtype", "float32", "--parts", "9", "--iterations", "7", "--id", "digits", "--ood", "digits-near"),
    ]
    assert hashes(run)["id-train"] == "ab12"
    assert len(hashes(run)["digits-near (certified)"]) == 64
    for line in (train, evaluate, certification):
        parse_command(line)


def parse_command(words: list[str]) -> None:
    """Parse a command line as click does, without running it; click raises where it does not parse."""
    assert isinstance(main, LazyGroup)
    command = main.get_command(main.make_context("certood", [], resilient_parsing=True), words[1])
    assert command is not None
    command.make_context(words[1], words[2:])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.usefixtures("blank")
def test_the_printed_commands_make_the_same_numbers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit("digits-ce", run, settings=["training.epochs=2", "run.device=cpu", "data.ood=['digits-near']"], progress=False)
    found = certify(run, eps=(0.03, 0.01), limit=2, seed=5)
    report(run, run / "report.html")
    lines = re.findall(r"^(?:<pre>)?(certood [^<\n]+)", (run / "report.html").read_text("utf-8"), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        main(shlex.split(line)[1:], standalone_mode=False)
    again, eps = read_certificates(tmp_path / "run-again" / "certificates.csv")
    assert eps == (0.03, 0.01)
    assert len(again) == 4
    for one, two in zip(found, again, strict=True):
        np.testing.assert_equal(*(dataclasses.astuple(dataclasses.replace(part, seconds=0)) for part in (one, two)))


def test_the_summary_has_radii_of_both_kinds_beside_the_benchmark(two: list[Path], tmp_path: Path) -> None:
    rows = summary_rows(read_runs([*two, write_run(tmp_path / "evaluated", n=1000)]))
    assert [(row["group"], row["run"]) for row in rows] == [
        (group, run) for group in ("near", "far") for run in ("sharp", "stiff", "evaluated")
    ]
    stiff = rows[1]
    assert (stiff["accuracy"], stiff["fpr95"], stiff["auroc"]) == (87.5, 50.0, 50.0)
    # The medians of INSIDE, doubled, and of NEAR; an attack radius is twice the certified one.
    assert (stiff["radius_id"], stiff["radius_ood"]) == (pytest.approx(0.06), pytest.approx(0.004))
    assert (stiff["attack_id"], stiff["attack_ood"]) == (pytest.approx(0.12), pytest.approx(0.008))
    stored = json.loads((two[1] / "certification.json").read_text())
    assert stiff["gauc"] == pytest.approx(100 * stored["sets"]["digits-near"]["gauc"][0])
    assert stiff["aauc"] == pytest.approx(100 * stored["sets"]["digits-near"]["aauc"][0])
    assert (stiff["eps"], stiff["n"], stiff["n_certified"], stiff["norm"]) == (EPS[0], 1000, 8, "l∞")
    # digits-photo is evaluated only; one that is not certified has no radius.
    assert (rows[4]["set"], rows[4]["fpr95"], rows[4]["gauc"], rows[4]["radius_ood"]) == (
        "digits-photo",
        50.0,
        None,
        None,
    )
    assert rows[2]["radius_id"] is None
    best = {
        (rows[index]["group"], key): rows[index]["run"] for index, key in best_cells(rows, table_columns()["summary"])
    }
    assert best == {(group, key): "sharp" for group in ("near", "far") for key in ("fpr95", "auroc")}


def seeds(folder: Path, rates: tuple[float, ...] = (0.1, 0.2, 0.3)) -> list[Path]:
    return [
        write_run(
            folder / f"run-{seed}",
            certificates(INSIDE, (NEAR, (0.004, 0.0, 0.0), (0.1, 0.2, 0.3))[seed]),
            recipe={**RECIPE, "run": {"seed": seed}},
            fpr95=rate,
            n=10_000,
        )
        for seed, rate in enumerate(rates)
    ]


@pytest.mark.usefixtures("blank")
def test_seeds_are_one_row_with_their_deviation_and_the_wider_interval(tmp_path: Path) -> None:
    paths = seeds(tmp_path)
    (near, far) = summary_rows(read_runs(paths), near=["digits-near"])
    assert (near["run"], near["runs"], near["group"], far["set"]) == ("run", 3, "near", "digits-photo")
    student = stats.t.interval(0.95, 2, loc=20, scale=10 / math.sqrt(3))
    assert (near["fpr95"], near["fpr95_deviation"]) == (pytest.approx(20), pytest.approx(10))
    assert student[0] < 0
    # A share is not below 0.
    assert (near["fpr95_low"], near["fpr95_high"]) == (0, pytest.approx(student[1]))
    # Accuracy is the same of every seed, and known no better than one of them says.
    exact = stats.binomtest(8750, 10_000).proportion_ci(0.95, "exact")
    assert (near["accuracy_deviation"], near["accuracy_low"]) == (0, pytest.approx(100 * exact.low))
    # The verdict ranks kinds of training, not seeds.
    assert "Lowest mean FPR95: run (3 seeds) with 20.0 %." in " ".join(verdict(read_runs(paths)))
    assert next(column for column in table_columns()["summary"] if column.key == "fpr95").cell(near) == "20.0 ± 10.0"
    report(paths, tmp_path / "r.html")
    page = read_page(tmp_path / "r.html")
    assert "20.0 ± 10.0" in page.text
    assert "The same of every single run" in page.text
    # A seed that is there twice is no further seed.
    twice = [*paths, write_run(tmp_path / "again", certificates(INSIDE, NEAR), fpr95=0.1, n=10_000)]
    assert [row["runs"] for row in summary_rows(read_runs(twice))] == [3, 1] * 2


def test_sets_are_near_by_name_or_as_said(two: list[Path]) -> None:
    runs = read_runs(two)
    assert ood_groups(runs) == {"near": ("digits-near",), "far": ("digits-photo",)}
    assert ood_groups(runs, ["digits-photo"]) == {"near": ("digits-photo",), "far": ("digits-near",)}
    said = [dataclasses.replace(run, evaluation={**(run.evaluation or {}), "near": ["digits-photo"]}) for run in runs]
    assert ood_groups(said)["near"] == ("digits-photo",)
    assert ood_groups([said[0], runs[1]]) == {"all": ("digits-near", "digits-photo")}
    # Who says what the names say disagrees with nobody.
    agreeing = dataclasses.replace(runs[0], evaluation={**(runs[0].evaluation or {}), "near": ["digits-near"]})
    assert ood_groups([agreeing, runs[1]]) == ood_groups(runs)
    assert ood_groups(runs, ["digits-photo", "digits-near"]) == {"all": ("digits-near", "digits-photo")}
    with pytest.raises(CertoodError, match="no run has the OOD set 'svhn': expected one of digits-near, digits-photo"):
        report(two, format="json", near=["svhn"])


def test_runs_that_differ_in_the_seed_alone_are_one_kind_of_training(tmp_path: Path) -> None:
    paths = seeds(tmp_path, (0.2, 0.2))
    other = write_run(
        tmp_path / "wider", certificates(INSIDE, NEAR), recipe={**RECIPE, "model": {"options": {"width": 9}}}
    )
    runs = read_runs([*paths, other, write_run(tmp_path / "evaluated", recipe=None)])
    kinds = kinds_of_training(runs)
    assert [kind.label for kind in kinds] == ["run (2 seeds)", "wider", "evaluated"]
    curve = threat_curve(kinds[0], ["digits-near", "digits-photo"])
    assert curve is not None
    assert curve.eps.tolist() == [0.0, 0.005, 0.02]
    entries = [json.loads((path / "certification.json").read_text())["sets"]["digits-near"] for path in paths]
    for run, entry in enumerate(entries):
        # The radii of a run are not in order.
        assert curve.gauc[run].tolist() == [entry["auc"], *entry["gauc"][::-1]]
        assert curve.aauc[run].tolist() == [entry["auc"], *entry["aauc"][::-1]]
    assert entries[0]["auc"] != entries[1]["auc"]
    assert threat_curve(kinds[2], ["digits-near"]) is None
    pictures = threat_curves(runs, {"near": ("digits-near",), "far": ("digits-photo",)})
    assert [picture.alt for picture in pictures] == [
        "AUC, AAUC and GAUC over ε in l∞ (pixels), near OOD sets: run (2 seeds), wider"
    ]
    # What is hovered over are the numbers of the files.
    lines = {line["name"]: line for line in json.loads(pictures[0].values)[0]["lines"]}
    assert lines["run (2 seeds), GAUC"]["x"] == [0, 0.005, 0.02]
    assert lines["run (2 seeds), GAUC"]["y"][0] == pytest.approx(50 * sum(entry["auc"] for entry in entries), rel=1e-3)


def test_the_area_under_a_drawn_roc_is_the_auc_with_ties_against_the_detector() -> None:
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(0, 6, 20).astype(float), generator.integers(2, 9, 33).astype(float)
    assert POINTS % len(inside) == 0
    drawn = rejected_at(inside, outside)
    assert drawn.mean() == pytest.approx((outside[None] > inside[:, None]).mean())
    assert (np.diff(drawn) >= 0).all()


def test_curves_of_training_leave_out_what_never_changes(tmp_path: Path) -> None:
    paths = seeds(tmp_path, (0.2, 0.2))
    for factor, path in enumerate(paths, start=1):
        rows = [f"{epoch},{factor * 2.0**-epoch},0.5," for epoch in (1, 2, 3)]
        (path / "training.csv").write_text(
            "epoch,loss,accuracy,gradient_norm_in\n" + "\n".join(rows[: 4 - factor]) + "\n"
        )
    (picture,) = training_curves(read_runs(paths))
    assert picture.title == "loss"
    ((line,),) = [panel["lines"] for panel in json.loads(picture.values)]
    # The mean of both, over the epochs that both have.
    assert (line["x"], line["y"]) == ([1, 2], [0.75, 0.375])
    (paths[0] / "training.csv").write_text("epoch,loss\n1,x\n")
    with pytest.raises(RunDirectoryError, match=r"training.csv is damaged"):
        read_runs(paths)


def test_histograms_and_rocs_name_what_they_show(two: list[Path], tmp_path: Path) -> None:
    runs, groups = (
        read_runs([*two, write_run(tmp_path / "evaluated")]),
        {"near": ("digits-near",), "far": ("digits-photo",)},
    )
    assert [picture.alt for picture in score_histograms(runs, groups)] == [
        f"Scores of {name}: 5 ID, 3 near OOD images, γ = −1" for name in ("sharp", "stiff")
    ]
    (roc,) = roc_curves(runs, groups)
    assert roc.alt == "ROC, near OOD sets, clean and guaranteed at ε = 0.02 in l∞: sharp, stiff"


def test_a_histogram_shows_all_seeds_of_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the second seed lie 2 lower, as its γ does, and it decides one more image wrongly."""
    paths = [
        write_run(tmp_path / f"mine-{seed}", certificates(radii, [0.01, 0.0]), recipe={**RECIPE, "run": {"seed": seed}})
        for seed, radii in enumerate(([0.02, 0.01, 0.0, 0.03], [0.0, 0.01, 0.0, 0.03]))
    ]
    first, second = read_runs(paths)
    lower = [dataclasses.replace(one, score=one.score - 2, threshold=one.threshold - 2) for one in second.certificates]
    runs = [first, dataclasses.replace(second, certificates=tuple(lower))]
    drawn: list[Axes] = []
    draw = histograms._draw_strip

    def kept(axes: Axes, **arguments: Any) -> None:
        draw(axes, **arguments)
        drawn.append(axes)

    monkeypatch.setattr(histograms, "_draw_strip", kept)
    (picture,) = score_histograms(runs, {"all": ("digits-near",)})
    assert picture.title == "mine (2 seeds)"
    assert picture.alt == "Scores of mine (2 seeds): 8 ID, 4 OOD images, γ from −3 to −1"
    inside, outside = drawn
    # 3 of 4, then 2 of 4: their mean, and their deviation.
    assert inside.get_ylabel() == "ID (8)\n62 ± 18 % accepted"
    assert outside.get_ylabel() == "OOD (4)\n50 ± 0 % accepted"
    assert outside.get_xlabel() == "score minus its run's γ; above 0 is rejected"
    *_, one, other, together = (np.asarray(part.get_data().values) for part in inside.patches)
    assert together == pytest.approx((one + other) / 2)
    assert (sorted(one[one > 0]), sorted(other[other > 0])) == ([0.25, 0.75], [0.5, 0.5])
    assert [np.asarray(line.get_xdata())[0] for line in inside.lines] == [0.0]


def test_the_certified_fractions_are_one_file(two: list[Path], tmp_path: Path) -> None:
    write_fractions(read_runs(two), tmp_path / "radii.png")
    with Image.open(tmp_path / "radii.png") as picture:
        assert picture.width > 2 * picture.height
    with pytest.raises(CertoodError, match="no run here is certified"):
        write_fractions(read_runs([write_run(tmp_path / "evaluated")]), tmp_path / "none.png")
