"""VNN-LIB files, versions 1.0 and 2.0, of inputs in a box whose outputs fulfil any one of some linear inequalities.

Every number is written as the decimal that equals it, so that readings as real numbers, float64 and float32 agree. Version 1.0 is
that of the verification competitions up to 2025 (Demarchi et al., VNN-LIB): variables X_i and Y_j in row-major order, ≤ and ≥.
Version 2.0 declares the network and its tensors.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

from certood.claims.properties import Counterexamples
from certood.rounding import decimal_text

Name = Callable[[int], str]
ASCII = str.maketrans({"·": "*", "−": "-", "≤": "<=", "≥": ">=", "γ": "gamma", "ε": "eps", "√": "sqrt "})


def vnnlib_1(described: Counterexamples, comment: Sequence[str] = ()) -> str:
    """The file of version 1.0, with comment lines at its top."""
    size = described.lower.size
    lines = [
        *_comments(comment),
        *(f"(declare-const X_{place} Real)" for place in range(size)),
        *(f"(declare-const Y_{place} Real)" for place in range(described.outputs)),
        *_box(described, lambda place: f"X_{place}"),
        *_output(described, lambda place: f"Y_{place}"),
    ]
    return "\n".join(lines) + "\n"


def vnnlib_2(described: Counterexamples, comment: Sequence[str] = ()) -> str:
    """The file of version 2.0, with comment lines at its top."""
    shape = described.lower.shape
    places = [",".join(map(str, place)) for place in itertools.product(*map(range, shape))]
    lines = [
        *_comments(comment),
        "(vnnlib-version <2.0>)",
        "(declare-network network",
        f"  (declare-input X float32 [{','.join(map(str, shape))}])",
        f"  (declare-output Y float32 [1,{described.outputs}])",
        ")",
        *_box(described, lambda place: f"X[{places[place]}]"),
        *_output(described, lambda place: f"Y[0,{place}]"),
    ]
    return "\n".join(lines) + "\n"


def _comments(comment: Sequence[str]) -> Iterator[str]:
    """Lines of ASCII, which every reader takes whatever its locale."""
    return (f"; {line}".translate(ASCII).encode("ascii", "replace").decode().rstrip() for line in comment)


def _box(described: Counterexamples, name: Name) -> Iterator[str]:
    ends = zip(described.lower.ravel().tolist(), described.upper.ravel().tolist(), strict=True)
    for place, (low, high) in enumerate(ends):
        yield f"(assert (>= {name(place)} {decimal_text(low)}))"
        yield f"(assert (<= {name(place)} {decimal_text(high)}))"


def _output(described: Counterexamples, name: Name) -> Iterator[str]:
    found = [_inequality(coefficients, bound, name) for coefficients, bound in described.rows]
    if len(found) == 1:
        yield f"(assert {found[0]})"
        return
    # The competitions' own files wrap what stands in an "or" into "and"; some readers expect it.
    yield "(assert (or"
    yield from (f"  (and {inequality})" for inequality in found)
    yield "))"


def _inequality(coefficients: Sequence[float], bound: float, name: Name) -> str:
    terms = [(place, value) for place, value in enumerate(coefficients) if value]
    (first, factor), *others = terms
    if not others and abs(factor) == 1:
        sign = "<=" if factor > 0 else ">="
        return f"({sign} {name(first)} {decimal_text(factor * bound)})"
    products = " ".join(f"(* {decimal_text(value)} {name(place)})" for place, value in terms)
    return f"(<= {f'(+ {products})' if others else products} {decimal_text(bound)})"
