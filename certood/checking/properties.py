"""Whether the VNN-LIB files of an export say what its certificates do, and its lists of instances name them.

A file may describe more counterexamples than the claim has, never fewer, or a verifier would prove less than is claimed.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from certood.checking.certificates import Decision, decision_of
from certood.checking.linear_bounds import Ball, fills_some_ball, half_width
from certood.claims.properties import Case, Counterexamples, Property
from certood.claims.vnnlib import vnnlib_1, vnnlib_2
from certood.claims.vnnlib_reading import read_vnnlib
from certood.errors import CertoodError
from certood.rounding import entropy_below, float32_below, float32_beyond, log_enclosure

KINDS = ("scores", "conditions")
# The lists of instances, by the versions of VNN-LIB.
INSTANCES = {"1.0": "instances.csv", "2.0": "instances-2.0.csv"}


def kinds_of(claim: Mapping[str, Any]) -> Sequence[str]:
    """In which folders of an export a claim of claims.json has properties: scores, and conditions where it has one."""
    return ("scores",) if claim["condition"] is None else KINDS


def property_file(kind: str, version: str, claim: str) -> str:
    """Where in an export the property of a claim lies; `kind` is scores or conditions."""
    return f"{kind}/vnnlib-{version}/{claim}.vnnlib"


def wrong_properties(
    folder: Path, content: Mapping[str, Any], claim: Mapping[str, Any], ball: Ball | None, outputs: int | None
) -> Iterator[str]:
    """What the properties of a claim say otherwise than claims.json, whose `content` is given, and its certificate.

    The box must lie in the certificate's `ball` and fill it, or without a certificate be as large; γ and the condition must be
    the claim's, for a network of so many `outputs` where that is known; and the files of both versions must say the same, in the
    words of certood: what another reader could take for something else (strict inequalities, a box for each class, digits beyond
    float32) is found too. Raises ValueError where the detector's description makes no sense.
    """
    detector, accepted, shape = content["detector"], claim["accepted"], content["detector"]["input_shape"]
    decision = decision_of(detector, accepted=accepted)
    half = half_width(float(content["norm"]), claim["eps"], math.prod(shape))
    for kind in kinds_of(claim):
        place = property_file(kind, "1.0", claim["name"])
        decides = None if kind == "scores" else decision
        if kind == "conditions" and decides is None:
            yield f"there are no conditions of the score {detector['score']['name']}"
            continue
        try:
            first = plain_text(folder / place)
            described = read_vnnlib(first, place, 1 if decides is None else decides.classes)
            second = plain_text(folder / property_file(kind, "2.0", claim["name"]))
        except (OSError, CertoodError) as error:
            yield f"the property in {kind} cannot be read: {error}"
            continue
        boxes = {(case.lower.tobytes(), case.upper.tobytes()): case for case in described.cases}
        if described.inputs != math.prod(shape):
            yield f"{place} has {described.inputs} inputs, images of {list(shape)} are claimed"
            continue
        if problem := next(filter(None, (_wrong_box(case, ball, half) for case in boxes.values())), None):
            yield f"the box in {place} {problem}"
            continue
        if not (
            _has_score(described, detector["threshold"], accepted=accepted)
            if decides is None
            else _suffices(described, decides, outputs, accepted=accepted)
        ):
            yield f"the outputs in {place} are not those of the claim"
            continue
        written = _as_written(described, shape)
        if written is None or _without_comments(first) != _without_comments(vnnlib_1(written)):
            yield f"{place} is not the text that certood writes of one box and numbers of float32"
        elif _without_comments(second) != _without_comments(vnnlib_2(written)):
            yield f"{property_file(kind, '2.0', claim['name'])} does not say what {place} does"


def wrong_instances(folder: Path, claims: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lists of instances that do not name every property of these claims once, and no other."""
    for kind in KINDS:
        names = [claim["name"] for claim in claims if kind in kinds_of(claim)]
        for version, file in INSTANCES.items():
            path = folder / kind / file
            try:
                lines = plain_text(path).splitlines() if names else []
            except (OSError, CertoodError) as error:
                yield f"{kind}/{file} cannot be read: {error}"
                continue
            found = [re.sub(r",\d+(\.\d+)?$", "", line) for line in lines]
            if sorted(found) != sorted(f"network.onnx,vnnlib-{version}/{name}.vnnlib" for name in names):
                yield f"{kind}/{file} does not name the properties of the claims"


def plain_text(path: Path) -> str:
    """A file of printable ASCII characters and ends of lines, as certood writes it; raises CertoodError for any other.

    What other characters end, a line or a comment, is another matter with every reader.
    """
    if not path.is_file():
        raise CertoodError(f"{path.name} is missing")
    content = path.read_bytes().replace(b"\r\n", b"\n")
    if odd := re.search(rb"[^\n\x20-\x7e]", content):
        raise CertoodError(f"{path.name} has the byte {odd[0][0]:#04x}, expected printable ASCII characters")
    return content.decode("ascii")


def _wrong_box(case: Case, ball: Ball | None, half: float) -> str | None:
    """What a box is that it must not be: outside of its ball, or smaller than the largest one inside it, of this half-width."""
    if bool((case.lower > case.upper).any()):
        return "is empty"
    if ball is None:
        some = fills_some_ball(case.lower, case.upper, half)
        return None if some else "is not the largest one inside a ball of the claim's radius, around any image"
    if not ball.holds(case.lower, case.upper):
        return "is not inside the certificate's ball"
    if not ball.fills(case.lower, case.upper):
        return "is smaller than the largest one inside the certificate's ball"
    return None


def _has_score(described: Property, gamma: float, *, accepted: bool) -> bool:
    """Whether the counterexamples are those of the score: S above γ of an accepted image, at most γ of a rejected one."""
    row, bound = (-1.0, -float32_beyond(gamma)) if accepted else (1.0, float32_below(gamma))
    return [(case.rows.tolist(), case.bounds.tolist()) for case in described.cases] == [([[row]], [bound])]


def _suffices(described: Property, decision: Decision, outputs: int | None, *, accepted: bool) -> bool:
    """Whether every counterexample of the claim is one of these, of linear inequalities of the logits."""
    cases = described.cases
    if outputs not in (None, described.outputs) or described.outputs < decision.classes:
        return False
    if any(len(case.bounds) != 1 or any(case.strict) for case in cases):
        return False
    return (_suffices_accepted if accepted else _suffices_rejected)(cases, decision)


def _suffices_accepted(cases: Sequence[Case], decision: Decision) -> bool:
    """p·f ≤ b, with b at least −γ − T·H(p), for weights p of the classes: where S > γ it is fulfilled."""
    if len(cases) != 1:
        return False
    row, classes = [Fraction(value) for value in cases[0].rows[0].tolist()], decision.classes
    if min(row) < 0 or sum(row[:classes]) != 1 or any(row[classes:]):
        return False
    spread = Fraction(entropy_below(row[:classes])) if decision.temperature else Fraction()
    least = -Fraction(decision.threshold) - Fraction(decision.temperature) * spread
    return Fraction(float(cases[0].bounds[0])) >= least


def _suffices_rejected(cases: Sequence[Case], decision: Decision) -> bool:
    """−f_k ≤ b for every class, with b at least γ + T·log K: where S ≤ γ one of them is fulfilled."""
    several = Fraction(log_enclosure(Fraction(decision.classes))[1]) if decision.temperature else Fraction()
    least = Fraction(decision.threshold) + Fraction(decision.temperature) * several
    reached = set()
    for case in cases:
        (place,) = np.flatnonzero(case.rows[0]) if np.count_nonzero(case.rows[0]) == 1 else (-1,)
        if place >= 0 and case.rows[0][place] == -1 and Fraction(float(case.bounds[0])) >= least:
            reached.add(int(place))
    return reached >= set(range(decision.classes))


def _as_written(described: Property, shape: Sequence[int]) -> Counterexamples | None:
    """What certood would write for a property of one inequality a case; None where that is no box, or no number, of float32."""
    rows = tuple((tuple(case.rows[0].tolist()), float(case.bounds[0])) for case in described.cases)
    with np.errstate(over="ignore"):
        ends = [[getattr(case, end).astype(np.float32) for case in described.cases] for end in ("lower", "upper")]
        numbers = np.array([(*coefficients, bound) for coefficients, bound in rows])
        if not np.array_equal(numbers.astype(np.float32), numbers):
            return None
    if not all(np.array_equal(one, several[0]) for several in ends for one in several):
        return None
    lower, upper = (several[0].reshape(1, *shape) for several in ends)
    return Counterexamples(lower, upper, rows)


def _without_comments(text: str) -> list[str]:
    return [line for line in text.split("\n") if not line.startswith(";")]
