"""A reader of VNN-LIB 1.0: declarations, assertions of and, or, ≤, ≥ (and <, >) between linear terms of inputs or of outputs.

Inputs are X_i, outputs Y_j, of type Real. What a file asserts is brought into disjunctive form: a list of boxes of inputs, each
with linear inequalities of the outputs.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from certood.claims.properties import Case, Property
from certood.errors import CertoodError

TOKEN = re.compile(r";[^\n]*|[()]|[^\s();]+")
VARIABLE = re.compile(r"([XY])_(\d+)")
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?(\d+))?", re.ASCII)
# Digits of an exponent: one of more no number of float64 has, and a rational number of it may fill the memory.
EXPONENT = 3
# Ways of being a counterexample, after which a file is refused, and how deep its expressions may be nested.
MANY_CASES = 100_000
DEPTH = 64

Tree = str | list["Tree"]
Terms = Mapping[str, Fraction]


@dataclass(frozen=True)
class _Inequality:
    """Σ terms ≤ bound, or < where `strict`."""

    terms: Terms
    bound: Fraction
    strict: bool


Conjunction = tuple[_Inequality, ...]


def read_vnnlib(text: str, name: str = "the file", most: int = MANY_CASES) -> Property:
    """The property in a VNN-LIB 1.0 text; ends of boxes are rounded to float64, outwards.

    Raises CertoodError, naming what was found, for anything else than the subset above: constraints between inputs and outputs,
    inputs without both bounds, other commands; and for more than `most` ways of being a counterexample.
    """
    try:
        return _property(text, most)
    except CertoodError as error:
        raise CertoodError(f"{name}: {error}") from error
    except OverflowError as error:
        raise CertoodError(f"{name}: a number is beyond those of float64") from error


def _property(text: str, most: int) -> Property:
    declared: set[str] = set()
    cases: list[Conjunction] = [()]
    for tree in _trees(text):
        match tree:
            case ["declare-const", str(variable), "Real"] if VARIABLE.fullmatch(variable):
                declared.add(variable)
            case ["assert", asserted]:
                cases = _both(cases, _disjunction(asserted, most), most)
            case _:
                raise CertoodError(f"expected (declare-const X_0 Real) or (assert ...), found {_shown(tree)}")
    inputs, outputs = (_count(declared, letter) for letter in "XY")
    unknown = {name for case in cases for part in case for name in part.terms} - declared
    if unknown:
        raise CertoodError(f"{min(unknown)} is not declared")
    return Property(inputs, outputs, tuple(_case(case, inputs, outputs) for case in cases))


def _trees(text: str) -> Iterator[Tree]:
    """The expressions of a text, one after the other."""
    stack: list[list[Tree]] = []
    for token in TOKEN.findall(text):
        if token.startswith(";"):
            continue
        if token == "(":
            stack.append([])
            if len(stack) > DEPTH:
                raise CertoodError(f"parentheses are nested more than {DEPTH} deep")
            continue
        if token == ")":
            if not stack:
                raise CertoodError("a parenthesis is closed that was not opened")
            done: Tree = stack.pop()
        else:
            done = token
        if stack:
            stack[-1].append(done)
        else:
            yield done
    if stack:
        raise CertoodError("a parenthesis is not closed; the file may be truncated")


def _disjunction(tree: Tree, most: int) -> list[Conjunction]:
    """An expression as alternatives, each of inequalities that hold together."""
    match tree:
        case ["and", *parts]:
            found: list[Conjunction] = [()]
            for part in parts:
                found = _both(found, _disjunction(part, most), most)
            return found
        case ["or", *parts]:
            return [case for part in parts for case in _disjunction(part, most)]
        case [str(relation), left, right] if relation in ("<=", ">=", "<", ">"):
            small, large = (left, right) if relation.startswith("<") else (right, left)
            return [(_inequality(_linear(small), _linear(large), strict=len(relation) == 1),)]
    raise CertoodError(f"expected and, or, <=, >=, < or >, found {_shown(tree)}")


def _both(some: Sequence[Conjunction], others: Sequence[Conjunction], most: int) -> list[Conjunction]:
    if len(some) * len(others) > most:
        raise CertoodError(f"the assertions have {len(some) * len(others)} alternatives, expected at most {most}")
    return [one + other for one, other in itertools.product(some, others)]


def _inequality(small: Terms, large: Terms, *, strict: bool) -> _Inequality:
    """small ≤ large, with what is constant, under the name "", on the right."""
    found = {name: small.get(name, Fraction()) - large.get(name, Fraction()) for name in {*small, *large}}
    bound = -found.pop("", Fraction())
    return _Inequality({name: value for name, value in found.items() if value}, bound, strict)


def _linear(tree: Tree) -> Terms:
    """A term as multiples of variables, the constant part under the name ""."""
    match tree:
        case str(name) if VARIABLE.fullmatch(name):
            return {name: Fraction(1)}
        case str(number):
            return {"": _number(number)}
        case ["+", *parts] if parts:
            return _sum([_linear(part) for part in parts])
        case ["-", part]:
            return _scaled(_linear(part), Fraction(-1))
        case ["-", first, *parts] if parts:
            return _sum([_linear(first), *(_scaled(_linear(part), Fraction(-1)) for part in parts)])
        case ["*", *parts] if parts:
            found: Terms = {"": Fraction(1)}
            for factor in map(_linear, parts):
                if factor.keys() <= {""}:
                    found = _scaled(found, factor.get("", Fraction()))
                elif found.keys() <= {""}:
                    found = _scaled(factor, found.get("", Fraction()))
                else:
                    raise CertoodError(f"expected a product with at most one variable, found {_shown(tree)}")
            return found
    raise CertoodError(f"expected a variable, a number, +, - or *, found {_shown(tree)}")


def _number(text: str) -> Fraction:
    found = NUMBER.fullmatch(text)
    if found is None:
        raise CertoodError(f"expected a variable X_0 or Y_0 or a number, found {text!r:.40}")
    if len((found[1] or "").lstrip("0")) > EXPONENT:
        raise CertoodError(f"{text:.40} is beyond the numbers of float64")
    return Fraction(text)


def _sum(parts: Sequence[Terms]) -> Terms:
    return {name: sum((part.get(name, Fraction()) for part in parts), Fraction()) for part in parts for name in part}


def _scaled(terms: Terms, factor: Fraction) -> Terms:
    return {name: factor * value for name, value in terms.items()}


def _case(inequalities: Conjunction, inputs: int, outputs: int) -> Case:
    """The box of inputs, and the rows of outputs, of inequalities that hold together."""
    lower, upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
    rows, bounds, strict = [], [], []
    for part in inequalities:
        letters = {name[0] for name in part.terms}
        if letters == {"Y"}:
            row = np.zeros(outputs)
            for name, value in part.terms.items():
                row[int(name[2:])] = float(value)
            rows.append(row)
            bounds.append(float(part.bound))
            strict.append(part.strict)
        elif letters == {"X"} and len(part.terms) == 1:
            ((name, value),) = part.terms.items()
            place, end = int(name[2:]), part.bound / value
            if value > 0:
                upper[place] = min(upper[place], _outwards(end, 1))
            else:
                lower[place] = max(lower[place], _outwards(end, -1))
        else:
            raise CertoodError(f"expected a bound of one input, or of outputs, found one of {', '.join(part.terms)}")
    unbounded = np.flatnonzero(~(np.isfinite(lower) & np.isfinite(upper)))
    if len(unbounded):
        raise CertoodError(f"X_{unbounded[0]} lacks a lower or an upper bound")
    table = np.array(rows) if rows else np.zeros((0, outputs))
    return Case(lower, upper, table, np.array(bounds), tuple(strict))


def _outwards(value: Fraction, sign: int) -> float:
    """A float64 at or beyond a number on the side of a sign."""
    found = float(value)
    beyond = sign * Fraction(found) >= sign * value
    return found if beyond else float(np.nextafter(found, sign * np.inf))


def _count(declared: set[str], letter: str) -> int:
    """How many variables of a letter are declared; they are numbered from 0 without a gap."""
    numbers = sorted(int(name[2:]) for name in declared if name[0] == letter)
    if numbers != list(range(len(numbers))) or not numbers:
        raise CertoodError(f"expected {letter}_0, {letter}_1 and so on to be declared, found {len(numbers)} of them")
    return len(numbers)


def _shown(tree: Tree) -> str:
    text = tree if isinstance(tree, str) else f"({' '.join(map(_shown, tree))})"
    return text if len(text) <= 60 else f"{text[:57]}..."
