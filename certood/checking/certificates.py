"""The certificate of one claim: what is claimed, of which network, and the slopes by which it is proved."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from certood.checking.linear_bounds import Ball, LinearBounds
from certood.checking.network import Network
from certood.checking.scores import accepted_margin, rejected_margin
from certood.errors import CertoodError

FORMAT = "certood-certificate"
VERSION = 1
SCORES = "energy, max-logit and guarded"


class Damaged(CertoodError):
    """A file that is no certificate."""

    exit_code = 1


class Decision(NamedTuple):
    """What decides: whether −T·logsumexp(f/T), T = `temperature`, of the first `classes` outputs f is at most `threshold`."""

    temperature: float
    classes: int
    threshold: float


def decision_of(detector: Mapping[str, Any], *, accepted: bool) -> Decision | None:
    """What decides that a detector, as claims.json describes it, accepts or rejects an image; None for other scores than SCORES.

    Of the scores energy (T) and max-logit (0) it is the score itself, at γ, of the network's classes. A guarded score is
    −f/σ + α·q with an unknown q in [0, 1] and the one output f of the guard: −f ≤ σ·(γ − α) suffices for S ≤ γ, and −f > σ·γ for
    S > γ, where thresholds are rounded to the side on which they suffice. Raises ValueError where the description makes no sense.
    """
    score, threshold, classes = detector["score"], detector["threshold"], len(detector["classes"])
    constants = {"energy": ("temperature",), "max-logit": (), "guarded": ("sigma", "alpha")}.get(score["name"])
    if constants is None:
        return None
    for name, value in {"γ": threshold, **{name: score.get(name) for name in constants}}.items():
        if not is_number(value):
            raise ValueError(f"expected a finite number as {name} of the score {score['name']}, found {value!r:.60}")
    if score["name"] != "guarded":
        return Decision(score["temperature"] if constants else 0.0, classes, threshold)
    sigma, alpha, gamma = Fraction(score["sigma"]), Fraction(score["alpha"]), Fraction(threshold)
    if not (sigma > 0 and alpha >= 0):
        raise ValueError(
            f"expected sigma > 0 and alpha >= 0 of a guarded score, found {float(sigma)} and {float(alpha)}"
        )
    return Decision(0.0, 1, _at_most(sigma * (gamma - alpha)) if accepted else -_at_most(-sigma * gamma))


def is_number(value: object) -> bool:
    """Whether what JSON gave is a number that float64 holds, and neither a truth value nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _at_most(value: Fraction) -> float:
    """The largest float64 that is no larger, or the one below; raises ValueError where float64 does not reach so far."""
    try:
        found = float(value)
    except OverflowError as error:
        raise ValueError("the guarded score decides at a number beyond float64") from error
    return found if Fraction(found) <= value else math.nextafter(found, -math.inf)


@dataclass(frozen=True)
class ClaimCertificate:
    """That −T·logsumexp(f/T), T = `temperature`, of the first `classes` logits f is at most `threshold` (accepted), or above it.

    It holds on the ball of the norm inf, 2 or 1 around `centre` (d,) in pixels, cut off at 0 and 1, for the network in the file
    of this SHA-256. `slopes` are those of the lower lines of its ReLU, by the names of their outputs in the file, and
    `last_slopes`, where there are any, are better ones for the last linear bound alone; `weights` (K,) are those of the tangent
    of logsumexp that proves an accepted image, none of a rejected one. Numbers are float64.
    """

    network_sha256: str
    accepted: bool
    threshold: float
    temperature: float
    classes: int
    norm: str
    radius: float
    centre: tuple[float, ...]
    weights: tuple[float, ...]
    slopes: Mapping[str, tuple[float, ...]]
    last_slopes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def ball(self) -> Ball:
        """The images that it is about."""
        return Ball(np.array(self.centre), self.radius, float(self.norm))

    def require_fits(self, network: Network) -> None:
        """Raise ValueError where the certificate is about other images, or more classes, than this network has."""
        if len(self.centre) != math.prod(network.shape):
            raise ValueError(f"the centre has {len(self.centre)} pixels, the network takes {math.prod(network.shape)}")
        if not 1 <= self.classes <= network.outputs:
            raise ValueError(f"{self.classes} classes of {network.outputs} logits")

    def margin(self, network: Network) -> Fraction:
        """A lower bound of γ − S where accepted, of S − γ where rejected, over the ball.

        Raises ValueError where the certificate makes no sense for this network.
        """
        self.require_fits(network)
        bounds = LinearBounds(network, self.ball, self.slopes, self.last_slopes)
        if not self.accepted:
            return rejected_margin(
                bounds.lower, bounds.last, network.outputs, self.classes, self.threshold, self.temperature
            )
        if len(self.weights) != self.classes:
            raise ValueError(f"{len(self.weights)} weights of {self.classes} classes")
        return accepted_margin(bounds.last, network.outputs, self.weights, self.threshold, self.temperature)

    def holds(self, margin: Fraction) -> bool:
        """Whether a margin proves the claim: S ≤ γ, or S > γ."""
        return margin >= 0 if self.accepted else margin > 0

    def text(self) -> str:
        """The file."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def read_certificate(path: Path) -> ClaimCertificate:
    """The certificate in a file; raises Damaged for anything that is not one, naming what was found."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.pop("format") != FORMAT or content.pop("version") != VERSION:
            raise ValueError(f"expected {FORMAT} of version {VERSION}")
        return _checked(ClaimCertificate(**_tuples(content)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise Damaged(f"{path.name} is no certificate: {error}") from error


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    found = {
        part: {name: tuple(values) for name, values in content[part].items()} for part in ("slopes", "last_slopes")
    }
    return content | found | {"centre": tuple(content["centre"]), "weights": tuple(content["weights"])}


def _checked(found: ClaimCertificate) -> ClaimCertificate:
    """The certificate, if its numbers are such as its docstring says."""
    slopes = [slope for part in (found.slopes, found.last_slopes) for values in part.values() for slope in values]
    numbers = [found.threshold, found.temperature, found.radius, *found.centre, *found.weights, *slopes]
    if not all(is_number(number) for number in numbers):
        raise ValueError("a number is missing or not finite")
    if not all(0 <= slope <= 1 for slope in slopes):
        raise ValueError("a slope is not in [0, 1]")
    if not all(0 <= pixel <= 1 for pixel in found.centre):
        raise ValueError("a pixel of the centre is not in [0, 1]")
    if found.radius < 0 or found.temperature < 0 or found.norm not in ("inf", "2", "1"):
        raise ValueError(f"radius {found.radius}, temperature {found.temperature}, norm {found.norm!r}")
    if type(found.accepted) is not bool or type(found.classes) is not int:
        raise ValueError(f"accepted {found.accepted!r}, classes {found.classes!r}")
    return found
