"""What is to be certified, and how."""

import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from certood.analysis.bounds import METHODS as BOUND_METHODS
from certood.analysis.bounds import engine_by_name, in_full_precision
from certood.analysis.evidence.attack_libraries import library_by_name
from certood.analysis.evidence.quantities import column
from certood.analysis.evidence.smoothing import SMOOTHING, MedianSmoothing
from certood.errors import CertoodError

METHODS = (*BOUND_METHODS, SMOOTHING)
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class Settings:
    """What to certify, and how: the threat (norm, radii ε in pixels), the method of the bounds, and the effort.

    The first ε is the one to which `verdict` and the Lipschitz constants of a certificate belong. `tolerance` is that of
    certified radii; with `parts` or `timeout` above 0 they are refined by branch and bound, which splits a ball into at most that
    many parts, within so many seconds an image. Rows of linear bounds are computed in `dtype`, float64
    or float32. `attack_steps` and `restarts` are the effort of attacks, `samples` that of sampled gradients; `second_attack`
    names a library whose attacks are a second opinion. Of a guarded detector `bound_base` bounds the classifier beside the guard.
    Raises CertoodError for values that make no sense.
    """

    eps: tuple[float, ...] = (0.01,)
    norm: float = math.inf
    method: str = "crown"
    engine: str = "certood"
    iterations: int = 20
    tolerance: float = 0.01
    parts: int = 0
    timeout: float = 0.0
    dtype: str = "float64"
    attack_steps: int = 30
    restarts: int = 3
    samples: int = 16
    second_attack: str | None = None
    seed: int = 0
    bound_base: bool = False
    smoothing: MedianSmoothing = field(default_factory=MedianSmoothing)

    def __post_init__(self) -> None:
        if self.norm not in (math.inf, 2, 1):
            raise CertoodError(f"expected norm inf, 2 or 1, got {self.norm:g}")
        limit = 1.0 if self.norm == math.inf else math.inf
        if not self.eps or not all(0 < radius <= limit for radius in self.eps):
            raise CertoodError(f"expected radii 0 < eps <= {limit:g} in pixels, got {list(self.eps)}")
        if len({column("", radius) for radius in self.eps}) < len(self.eps):
            raise CertoodError(f"expected every radius once, got {list(self.eps)}")
        if self.method not in METHODS:
            raise CertoodError(f"unknown method {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.smoothed and self.norm != 2:
            raise CertoodError("smoothing certifies l2 balls only; add --norm 2")
        engine = engine_by_name(self.engine)
        engine.check_norm(self.norm)
        if self.second_attack is not None:
            library_by_name(self.second_attack)
        if self.dtype not in PRECISIONS:
            raise CertoodError(f"unknown precision {self.dtype!r}; expected {' or '.join(PRECISIONS)}")
        if not 0 < self.tolerance < 1:
            raise CertoodError(f"expected 0 < tolerance < 1, got {self.tolerance}")
        if self.parts < 0 or (self.parts and not engine.linear):
            raise CertoodError(f"expected parts >= 0, and 0 with the engine {self.engine}, got {self.parts}")
        if not 0 <= self.timeout < math.inf or (self.timeout and not engine.linear):
            raise CertoodError(
                f"expected a timeout >= 0 in seconds, and 0 with the engine {self.engine}, got {self.timeout:g}"
            )
        if min(self.iterations, self.attack_steps, self.restarts, self.samples) < 1:
            raise CertoodError("expected at least one iteration, attack step, restart and sample")

    @property
    def precision(self) -> torch.dtype:
        """`dtype` as PyTorch names it."""
        return PRECISIONS[self.dtype]

    @property
    def smoothed(self) -> bool:
        """Whether the smoothed detector is certified, with a probability, in place of the network itself."""
        return self.method == SMOOTHING

    def require_installed(self) -> None:
        """Raise CertoodError where the engine, or the library of the second attack, is not installed."""
        engine_by_name(self.engine).require()
        if self.second_attack is not None:
            library_by_name(self.second_attack).require()

    def record(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        plain = asdict(self)
        plain["norm"] = "inf" if self.norm == math.inf else f"{self.norm:g}"
        plain["eps"] = list(self.eps)
        return plain


def with_fast_rows(settings: Settings, device: torch.device) -> Settings:
    """The settings with rows of linear bounds in float32, half of the work: where there are such rows, and products of float32
    are in full precision on the device."""
    applicable = all(applies(settings) for applies, _ in NARROW["dtype"])
    fast = applicable and in_full_precision(torch.float32, device)
    return replace(settings, dtype="float32" if fast else "float64")


def require_applicable(given: Collection[str], settings: Settings) -> None:
    """Raise CertoodError where one of the settings that are `given` by name, e.g. parts or smoothing.sigma, changes nothing.

    `given` may hold names that are no settings.
    """
    for name in sorted(given):
        for applies, where in NARROW.get(name.partition(".")[0], ()):
            if not applies(settings):
                option = name.rpartition(".")[2].replace("_", "-")
                raise CertoodError(f"{option} says nothing {where}; leave it out")


Rule = tuple[Callable[[Settings], bool], str]
_UNSMOOTHED: Rule = (lambda settings: not settings.smoothed, "of smoothing")
_SMOOTHED: Rule = (lambda settings: settings.smoothed, "without the method smoothing")
_OPTIMISED: Rule = (lambda settings: settings.method == "alpha-crown", "without the method alpha-crown")
_OF_ROWS: Rule = (lambda settings: settings.method != "interval", "of interval bounds, which are float64")
_OWN_ROWS: Rule = (
    lambda settings: engine_by_name(settings.engine).linear,
    "of another engine's bounds, which have a precision of their own",
)
# The settings that do not always apply: where each does, and where it says nothing.
NARROW: dict[str, tuple[Rule, ...]] = {
    "engine": (_UNSMOOTHED,),
    "parts": (_UNSMOOTHED,),
    "timeout": (_UNSMOOTHED,),
    "tolerance": (_UNSMOOTHED,),
    "attack_steps": (_UNSMOOTHED,),
    "restarts": (_UNSMOOTHED,),
    "samples": (_UNSMOOTHED,),
    "second_attack": (_UNSMOOTHED,),
    "smoothing": (_SMOOTHED,),
    "iterations": (_OPTIMISED,),
    "dtype": (_UNSMOOTHED, _OF_ROWS, _OWN_ROWS),
}
