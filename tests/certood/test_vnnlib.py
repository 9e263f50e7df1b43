"""VNN-LIB: what is written is what is read, by our reader (1.0) and by the package vnnlib (2.0), number by number."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from certood.claims.properties import Counterexamples
from certood.claims.vnnlib import vnnlib_1, vnnlib_2
from certood.claims.vnnlib_reading import read_vnnlib
from certood.errors import CertoodError

Rows = tuple[tuple[tuple[float, ...], float], ...]
ROWS: dict[str, Rows] = {
    "at most": (((1.0, 0.0, 0.0), 0.25),),
    "at least": (((0.0, -1.0, 0.0), 2.5),),
    "sum": (((0.5, 0.25, 0.25), float(np.float32(0.1))),),
    "scaled": (((0.0, 0.5, 0.0), -1.0),),
    "any": (((-1.0, 0.0, 0.0), -3.0), ((0.0, -1.0, 0.0), -3.0), ((0.0, 0.0, -1.0), -3.0)),
}


def described(rows: Rows) -> Counterexamples:
    random = np.random.default_rng(0)
    lower = random.random((1, 1, 2, 3), dtype=np.float32) * np.float32(1e-3)
    return Counterexamples(lower, lower + random.random((1, 1, 2, 3), dtype=np.float32), rows)


@pytest.mark.parametrize("kind", ROWS)
def test_version_1_is_read_back(kind: str) -> None:
    written = described(ROWS[kind])
    found, expected = read_vnnlib(vnnlib_1(written, ["γ ≥ 1", "second"])), written.as_property()
    assert (found.inputs, found.outputs, len(found.cases)) == (6, 3, len(expected.cases))
    for one, other in zip(found.cases, expected.cases, strict=True):
        for name in ("lower", "upper", "rows", "bounds"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.strict == (False,)


def terms(expression: Any) -> dict[tuple[str, ...], Fraction]:
    """The package's term as multiples of (variable, index), the constant under ()."""
    vnnlib = pytest.importorskip("vnnlib")
    if isinstance(expression, vnnlib.Var):
        return {(expression.name, *map(str, expression.indices)): Fraction(1)}
    if isinstance(expression, vnnlib.Plus):
        found: dict[tuple[str, ...], Fraction] = {}
        for part in expression.args:
            for name, value in terms(part).items():
                found[name] = found.get(name, Fraction()) + value
        return found
    if isinstance(expression, vnnlib.Multiply):
        number, variable = expression.args
        (name,) = terms(variable)
        return {name: Fraction(str(number))}
    return {(): Fraction(str(expression))}


def inequalities(expression: Any) -> list[tuple[str, Any, Any]]:
    vnnlib = pytest.importorskip("vnnlib")
    if isinstance(expression, vnnlib.Or | vnnlib.And):
        return [found for part in expression.args for found in inequalities(part)]
    return [(type(expression).__name__, expression.lhs, expression.rhs)]


@pytest.mark.parametrize("kind", ROWS)
def test_version_2_is_what_the_package_reads(kind: str) -> None:
    vnnlib = pytest.importorskip("vnnlib")
    written = described(ROWS[kind])
    query = vnnlib.parse_query_string(vnnlib_2(written, ["γ ≥ 1"]))
    assert [list(part.shape) for part in query.networks[0].inputs] == [[1, 1, 2, 3]]
    assert [list(part.shape) for part in query.networks[0].outputs] == [[1, 3]]
    ends: dict[tuple[str, ...], dict[str, Fraction]] = {}
    rows = []
    for assertion in query.assertions:
        for relation, left, right in inequalities(assertion.expr):
            found, bound = terms(left), terms(right)[()]
            if any(name[0] == "X" for name in found):
                (name,) = found
                ends.setdefault(name, {})[relation] = bound
                continue
            sign = 1 if relation == "LessEqual" else -1
            row = [sign * found.get(("Y", "0", str(place)), Fraction()) for place in range(3)]
            rows.append((tuple(map(float, row)), float(sign * bound)))
    assert tuple(rows) == written.rows
    for place in np.ndindex(written.lower.shape):
        exact = ends["X", *map(str, place)]
        assert exact["GreaterEqual"] == Fraction(float(written.lower[place]))
        assert exact["LessEqual"] == Fraction(float(written.upper[place]))


DECLARED = (
    "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
)


def test_nested_alternatives_of_inputs_and_outputs() -> None:
    """As the files of ACAS Xu's sixth property have it; the numbers checked by evaluating the text itself."""
    text = (
        "(declare-const X_0 Real) (declare-const Y_0 Real) (declare-const Y_1 Real) ; a comment (\n"
        "(assert (or (and (>= X_0 -1e-1) (<= X_0 0.25) (<= Y_0 Y_1)) (and (<= 0.5 X_0) (<= X_0 2))))\n"
        "(assert (or (< (+ Y_0 (* 2 Y_1) -1) 3) (> (- Y_0) (- Y_1 Y_0 1.5))))"
    )
    found = read_vnnlib(text)
    assert (found.inputs, found.outputs, len(found.cases)) == (1, 2, 4)
    for x in np.linspace(-0.5, 2.5, 13):
        for one in np.linspace(-3, 3, 9):
            for two in np.linspace(-3, 3, 9):
                first = (-0.1 <= x <= 0.25 and one <= two) or 0.5 <= x <= 2
                second = one + 2 * two - 1 < 3 or -one > two - one - 1.5
                inside = any(case.contains(np.array([x]), np.array([one, two])) for case in found.cases)
                assert inside == (first and second), (x, one, two)


def test_ends_that_are_no_float64_are_rounded_outwards() -> None:
    (case,) = read_vnnlib(DECLARED.replace("<= X_0 1", "<= (* 3 X_0) 1").replace("X_0 0)", "X_0 0.1)")).cases
    assert Fraction(case.upper[0]) >= Fraction(1, 3) > Fraction(np.nextafter(case.upper[0], 0))
    assert Fraction(case.lower[0]) <= Fraction(1, 10) < Fraction(np.nextafter(case.lower[0], 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(assert (<= X_0 1)", "truncated"),
        (")", "not opened"),
        ("(check-sat)", "found \\(check-sat\\)"),
        ("(assert (<= X_0 Y_0))", "found one of"),
        ("(assert (<= (* Y_0 Y_1) 1))", "at most one variable"),
        ("(assert (<= Y_7 1))", "Y_7 is not declared"),
        ("(assert (<= Y_0 blue))", "'blue'"),
        ("(assert (<= X_0 9e309))", "beyond those of float64"),
        ("(assert (<= Y_0 -9e309))", "beyond those of float64"),
        ("(assert (<= X_0 1e+999999999))", r"1e\+999999999 is beyond the numbers of float64"),
        ("(assert (<= X_0 1e9_9_9_9_9_9))", "or a number, found '1e9_9_9_9_9_9'"),
        ("(assert (<= X_0 1e\u0663\u0663\u0663\u0663))", "or a number"),
        ("(assert (<= X_0 1/0))", "or a number"),
        ("(assert (<= X_0 0.5e+0001000))", "is beyond the numbers of float64"),
        ("(assert (not (<= Y_0 1)))", "expected and, or"),
        ("(assert " + "(and " * 17 + "(or (<= Y_0 1) (<= Y_1 1))" + ")" * 17 + ")", None),
        ("".join("(assert (or (<= Y_0 1) (<= Y_1 1)))" for _ in range(18)), "alternatives"),
    ],
)
def test_anything_else_is_one_error(text: str, message: str | None) -> None:
    if message is None:
        assert len(read_vnnlib(DECLARED + text).cases) == 2
        return
    with pytest.raises(CertoodError, match=f"^prop.vnnlib: .*{message}"):
        read_vnnlib(DECLARED + text, "prop.vnnlib")


def test_an_input_without_bounds_is_refused() -> None:
    with pytest.raises(CertoodError, match="X_0 lacks"):
        read_vnnlib("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (<= Y_0 1))")
    with pytest.raises(CertoodError, match="X_0, X_1 and so on"):
        read_vnnlib("(declare-const X_1 Real)(declare-const Y_0 Real)")
