"""The report: its numbers are those of the files, runs that cannot be compared are not, and bad files are named."""

import csv
import dataclasses
import io
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from certood.analysis import certify, certify_run, report
from certood.analysis.records import read_certificates
from certood.analysis.reporting.formats import escape_latex
from certood.analysis.reporting.kinds import kinds_of_training
from certood.analysis.reporting.links import image_correlations, run_correlations, run_points, spearman
from certood.analysis.reporting.page import number
from certood.analysis.reporting.pictures import worst_images
from certood.analysis.reporting.plots import (
    curves,
    positive_pairs,
    scatters,
    share_above,
    threat_curves,
    write_curves,
)
from certood.analysis.reporting.provenance import commands, hashes
from certood.analysis.reporting.runs import read_runs
from certood.analysis.reporting.tables import (
    BENCHMARK,
    benchmark_rows,
    best_cells,
    overview_rows,
    radius_rows,
    table_columns,
    tables,
    theory_rows,
)
from certood.analysis.reporting.verdict import verdict
from certood.analysis.settings import Settings
from certood.cli import LazyGroup, main
from certood.errors import CertoodError, RunDirectoryError
from certood.train import fit
from tests.analysis.report_runs import EPS, RECIPE, certificate, certificates, write_run

INSIDE, NEAR = (0.0, 0.01, 0.03, 0.05, 0.07), (0.004, 0.0, 0.08)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """A run that detects well, and one that is certified further."""
    return [
        write_run(tmp_path / "sharp", certificates(INSIDE, NEAR), fpr95=0.125),
        write_run(tmp_path / "stiff", certificates([2 * r for r in INSIDE], NEAR), fpr95=0.5),
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


def test_intervals_are_shown_where_they_were_computed(two: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    report(two, page)
    assert "% from" not in page.read_text() + report(two, format="latex")
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
    assert rows["sharp", "mean"]["fpr95_low"] is rows["stiff", "digits-near"]["auroc_high"] is None
    report(two, page)
    assert "% from" in page.read_text()
    assert "% from" in report(two, format="latex")


def test_the_best_cell_is_the_best_of_its_set(two: list[Path]) -> None:
    rows = benchmark_rows(read_runs(two))
    best = best_cells(rows, BENCHMARK)
    assert {rows[index]["run"] for index, _ in best} == {"sharp"}
    assert {key for _, key in best} == {"fpr95", "auroc"}
    assert len(best) == 2 * 3
    theory = theory_rows(read_runs(two))
    radii = [theory[index] for index, key in best_cells(theory, table_columns()["theory"]) if key == "radius_certified"]
    # The radii of digits-near are the same in both runs: nothing is best there.
    assert [(row["run"], row["set"]) for row in radii] == [("stiff", "digits")]


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
    assert [(picture.alt.count("l∞"), picture.alt.count("l2")) for picture in curves(runs)] == [(1, 0)] * 2 + [
        (0, 1)
    ] * 2
    text = " ".join(verdict(runs))
    assert "l∞, pixels of the range 0 to 1): other with 0.1500 (smallest: inf with 0.0300)" in text
    assert "l2, pixels of the range 0 to 1): two with 0.2700" in text
    assert [(norm, len(points)) for norm, _, points in run_correlations(run_points(runs))] == [("inf", 2), ("2", 1)]
    page = tmp_path / "r.html"
    report(paths, page)
    assert "Rows with different norms or ε do not compare" in page.read_text("utf-8")


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

    VOID = ("meta", "link", "img", "source", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    assert page.open == []
    assert all(link.startswith("data:") for link in page.links)
    page.text = " ".join(page.text.split())
    return page


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
        "--norm inf --eps 0.02,0.005 --method crown --seed 0 --limit 3",
        "torch 2.6.0",
        "wrongly rejected",
    ):
        assert part in page.text, part


def test_violations_are_said_at_the_top(tmp_path: Path) -> None:
    records = certificates(INSIDE, NEAR)
    records[0] = dataclasses.replace(records[0], violations=3)
    report([write_run(tmp_path / "run", records)], tmp_path / "r.html")
    text = read_page(tmp_path / "r.html").text
    assert "run: 3 inequalities that must hold do not" in text
    assert "none is violated" not in text


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


def test_an_unfinished_certification_is_left_out_and_said(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", certificates(INSIDE, NEAR))
    table = path / "certificates.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:4]))
    (run,) = read_runs([path])
    assert run.certification is None
    assert "is about 8 images and certificates.csv has 3" in run.note
    report(path, tmp_path / "r.html")
    assert "shown without certificates" in read_page(tmp_path / "r.html").text
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
        *("--parts", "9", "--dtype", "float32", "--iterations", "7", "--id", "digits", "--ood", "digits-near"),
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


@pytest.mark.slow
def test_the_printed_commands_make_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Figures of single runs are tested elsewhere, and take most of the time.
    monkeypatch.setattr(certify_run, "draw_figures", lambda *_: [])
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


def test_the_overview_has_radii_of_both_kinds_beside_the_benchmark(two: list[Path], tmp_path: Path) -> None:
    rows = overview_rows(read_runs([*two, write_run(tmp_path / "evaluated")]))
    assert [row["run"] for row in rows] == ["sharp", "stiff"]
    stiff = rows[1]
    assert (stiff["accuracy"], stiff["fpr95"], stiff["auroc"]) == (87.5, 50.0, 50.0)
    # The medians of INSIDE, doubled, and of NEAR.
    assert (stiff["radius_id"], stiff["radius_ood"]) == (pytest.approx(0.06), pytest.approx(0.004))
    stored = json.loads((two[1] / "certification.json").read_text())
    assert stiff["gauc"] == pytest.approx(100 * stored["sets"]["digits-near"]["gauc"][0])
    assert (stiff["eps"], stiff["n"], stiff["norm"]) == (EPS[0], 8, "l∞")
    best = {key: rows[index]["run"] for index, key in best_cells(rows, table_columns()["overview"])}
    assert best == {"fpr95": "sharp", "auroc": "sharp", "radius_id": "stiff"}


def test_runs_that_differ_in_the_seed_alone_are_one_kind_of_training(tmp_path: Path) -> None:
    seeds = [
        write_run(tmp_path / f"seed-{seed}", certificates(INSIDE, near), recipe={**RECIPE, "run": {"seed": seed}})
        for seed, near in enumerate([NEAR, (0.004, 0.0, 0.0)])
    ]
    other = write_run(
        tmp_path / "wider", certificates(INSIDE, NEAR), recipe={**RECIPE, "model": {"options": {"width": 9}}}
    )
    runs = read_runs([*seeds, other, write_run(tmp_path / "evaluated")])
    first, second = kinds_of_training(runs)
    assert (first.name, second.name) == ("digits-ce, 2 runs", "wider")
    assert first.eps.tolist() == [0.0, 0.005, 0.02]
    entries = [json.loads((path / "certification.json").read_text())["sets"]["digits-near"] for path in seeds]
    for run, entry in enumerate(entries):
        # The radii of a run are not in order.
        assert first.gauc[run].tolist() == [entry["auc"], *entry["gauc"][::-1]]
        assert first.aauc[run].tolist() == [entry["auc"], *entry["aauc"][::-1]]
    assert entries[0]["auc"] != entries[1]["auc"]
    pictures = threat_curves(runs)
    assert [picture.alt for picture in pictures] == ["GAUC and AAUC over ε in l∞: digits-ce, 2 runs, wider"]
    assert threat_curves(read_runs([tmp_path / "evaluated"])) == []


def test_the_certified_fractions_are_one_file(two: list[Path], tmp_path: Path) -> None:
    write_curves(read_runs(two), tmp_path / "radii.png")
    with Image.open(tmp_path / "radii.png") as picture:
        assert picture.width > 2 * picture.height
    with pytest.raises(CertoodError, match="no run here is certified"):
        write_curves(read_runs([write_run(tmp_path / "evaluated")]), tmp_path / "none.png")
