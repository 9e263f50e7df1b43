"""Requirements of a gate, and the intervals that decide them, against counted and simulated ones."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from certood.analysis.intervals import area_interval, median_interval, share_interval
from certood.analysis.records import AtRadius, Certificate
from certood.analysis.requirements import (
    LEAST_IMAGES,
    check_requirements,
    judge,
    outcome_table,
    parse_requirement,
    require_enough,
)
from certood.analysis.summary import summarise
from certood.errors import CertoodError, RequirementNotMet


@given(st.integers(1, 300), st.data())
def test_a_share_is_enclosed_by_the_shares_that_it_does_not_refute(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    low, high = share_interval(count / n, n)
    # At either end, what was counted or more (or less) has the probability 2.5 %.
    assert low == 0 if count == 0 else stats.binom.sf(count - 1, n, low) == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if count == n else stats.binom.cdf(count, n, high) == pytest.approx(0.025, rel=1e-6)


def test_an_area_is_covered_by_its_interval_in_95_of_100_samples() -> None:
    generator = np.random.default_rng(0)
    for shift, spread, (n_id, n_ood) in product((0.3, 1.5, 3.0), (0.3, 1.0, 3.0), ((20, 20), (100, 30))):
        area = stats.norm.cdf(shift / math.sqrt(1 + spread**2))
        kept = 0
        for _ in range(300):
            inside, outside = generator.normal(size=n_id), generator.normal(shift, spread, n_ood)
            low, high = area_interval(float((outside[:, None] > inside).mean()), n_id, n_ood)
            kept += low <= area <= high
        # 95 % of 300 is 285, and 275 of them are exceeded in 99.7 % of such experiments.
        assert kept >= 275, (shift, spread, n_id, n_ood)


def test_an_area_of_1_is_no_certainty() -> None:
    # Wilson's lower end at a share of 1: n / (n + z²).
    assert area_interval(1.0, 100, 500) == (pytest.approx(100 / (100 + 1.959964**2)), 1.0)
    assert area_interval(0.0, 500, 100) == (0.0, pytest.approx(1.959964**2 / (100 + 1.959964**2)))


@pytest.mark.parametrize("n", [6, 9, 10, 100, 101])
def test_a_median_is_enclosed_by_order_statistics(n: int) -> None:
    values = [float(value) for value in np.random.default_rng(n).permutation(n)]
    low, high = median_interval(values)
    # The true median lies outside where at most `low` values are below it, or above `high`: coin tosses.
    assert low == n - 1 - high
    missed = 2 * sum(math.comb(n, k) for k in range(int(low) + 1)) / 2**n
    narrower = 2 * sum(math.comb(n, k) for k in range(int(low) + 2)) / 2**n
    assert missed <= 0.05 < narrower


def test_few_values_do_not_enclose_a_median() -> None:
    assert median_interval([1.0] * 5) == (-math.inf, math.inf)
    assert median_interval([]) == (-math.inf, math.inf)
    assert median_interval([1.0, math.inf, 2.0, 3.0, 4.0, 5.0]) == (1.0, math.inf)
    with pytest.raises(CertoodError, match="at least one image"):
        share_interval(0.0, 0)


def records(kind: str, name: str, n: int, wrong: int = 0, *, low: float = 0.0) -> list[Certificate]:
    """Certificates whose radii are low, low + 1, …; the first ones are decided wrongly, with the radius 0."""
    found = []
    for index in range(n):
        right = index >= wrong
        radius = (low + index) if right else 0.0
        score = (-1.0 if kind == "id" else 1.0) * (1 if right else -1)
        at = AtRadius(0.1, "certified" if right else "refuted", {"lower": score, "upper": score, "attacked": score})
        values = {"radius_certified": radius, "radius_attack": radius + 1}
        found.append(
            Certificate(
                name, kind, index, score, 0.0, 1.0, accepted=score <= 0, values=values, at=(at,), verdict=at.verdict
            )
        )
    return found


RECORDS = [*records("id", "a", 100, wrong=4), *records("ood", "b", 120, wrong=10)]
RESULT = summarise(RECORDS, (0.1,))


def found(text: str) -> tuple[float | None, int, object, bool]:
    (outcome,) = judge([parse_requirement(text)], RESULT, RECORDS)
    return outcome.value, outcome.n, outcome.interval, outcome.holds


def test_every_requirement_has_its_number_count_and_interval() -> None:
    low, high = share_interval(0.96, 100)
    assert found("certified_fraction@a>=0.9") == (0.96, 100, (low, high), low >= 0.9)
    # The value 0.96 satisfies it, its interval from 0.901 on does not.
    assert not found("certified_fraction@a>=0.95")[-1]
    assert found("certified_fraction@a>=0.9")[-1]
    assert found("refuted_fraction@a<=0.1")[-1]
    assert not found("refuted_fraction@a<=0.09")[-1]
    assert found("fpr95@b<=0.2")[:2] == (pytest.approx(10 / 120), 120)
    area = np.mean([[two.score > one.score for one in RECORDS[:100]] for two in RECORDS[100:]])
    assert found("gauc@b>=0.8")[:3] == (pytest.approx(area), 100, pytest.approx(area_interval(float(area), 100, 120)))
    # Radii 0 (four times) and 4, 5 … 99: the 40th and the 61st of 100.
    assert found("median_radius_certified@a>=39") == (49.5, 100, (39.0, 60.0), True)
    assert not found("median_radius_certified@a>=39.5")[-1]
    assert found("violations<=0") == (0, 220, None, True)
    assert found("n@a>=100") == (100, 100, None, True)
    *_, requirement, row = str(outcome_table(judge([parse_requirement("n@a>=101")], RESULT, RECORDS))).splitlines()
    assert requirement == "n@a>=101"
    assert row.split() == ["a", "100", "100", "–", "NO"]


def test_of_several_radii_the_first_decides() -> None:
    """At 0.2 every decision is refuted."""
    larger = [
        replace(one, at=(*one.at, AtRadius(0.2, "refuted", dict.fromkeys(one.at[0].values, one.at[0].values["lower"]))))
        for one in RECORDS
    ]
    result = summarise(larger, (0.1, 0.2))
    for text, expected in (("certified_fraction@a>=0.5", 0.96), ("refuted_fraction@b<=0.5", 10 / 120)):
        (outcome,) = judge([parse_requirement(text)], result, larger)
        assert outcome.value == pytest.approx(expected)


def test_what_is_not_known_does_not_hold() -> None:
    assert found("global_lipschitz<=100") == (None, 220, None, False)
    with pytest.raises(RequirementNotMet, match="the run has not known"):
        check_requirements([parse_requirement("global_lipschitz<=100")], RESULT, RECORDS)


def test_the_ends_of_comparisons() -> None:
    for text, kept in (("n@b>=120", True), ("n@b>120", False), ("n@b<=120", True), ("n@b<120", False)):
        assert found(text)[-1] == kept
    with pytest.raises(RequirementNotMet, match=r"correct@a>=0.95: a has 0.96 and, decisive, 0.9007"):
        check_requirements([parse_requirement("correct@a>=0.95"), parse_requirement("n>=100")], RESULT, RECORDS)
    with pytest.raises(CertoodError, match="no 'gaucc'"):
        check_requirements([parse_requirement("gaucc>=0.6")], RESULT, RECORDS)
    for text in ("gauc", "gauc=0.5", "gauc>=high"):
        with pytest.raises(CertoodError, match=r"requirement"):
            parse_requirement(text)


def test_few_images_hold_nothing() -> None:
    images = {"a": ("id", LEAST_IMAGES - 1), "b": ("ood", LEAST_IMAGES), "c": ("ood", 5)}
    for text, few in (
        ("correct>=0", "a has 99, c has 5"),
        ("correct@b>=0", ""),
        ("fpr95@b<=1", ""),
        ("auc@b>=0", "a has 99"),
        ("gfpr95<=1", "c has 5"),
        ("violations<=0", "a has 99, c has 5"),
    ):
        if not few:
            require_enough([parse_requirement(text)], images)
            continue
        with pytest.raises(RequirementNotMet, match=f"at least 100 images a set, but {few};"):
            require_enough([parse_requirement(text)], images)
    few_records = RECORDS[100:150]
    result = summarise(few_records, (0.1,))
    with pytest.raises(RequirementNotMet, match="b has 50"):
        check_requirements([parse_requirement("n>=1")], result, few_records)
    assert check_requirements([parse_requirement("n>=1")], result, few_records, allow_few=True)[0].holds
