"""All evidence, in the order in which it is computed."""

from certood.analysis.evidence.attacked import Attacks
from certood.analysis.evidence.balls import Balls
from certood.analysis.evidence.base import Evidence
from certood.analysis.evidence.combined import Combined
from certood.analysis.evidence.direct import Direct
from certood.analysis.evidence.estimates import Estimates
from certood.analysis.evidence.global_constant import GlobalConstant
from certood.analysis.evidence.lipschitz_radii import LipschitzRadii
from certood.analysis.evidence.quantities import Quantity
from certood.analysis.evidence.refined import Refined
from certood.analysis.evidence.second_attack import SecondAttack
from certood.analysis.evidence.smoothed import Smoothed
from certood.analysis.settings import Settings
from certood.errors import CertoodError

# Later evidence may use what earlier evidence has found.
EVIDENCE: list[type[Evidence]] = [
    Estimates,
    Direct,
    SecondAttack,
    Attacks,
    GlobalConstant,
    Balls,
    Refined,
    LipschitzRadii,
    Smoothed,
]


def register(evidence: type[Evidence]) -> type[Evidence]:
    """Add evidence, computed after what there is; usable as a decorator. Raises CertoodError for a name that is taken."""
    taken = {name for quantity in quantities() for name in (quantity.name, quantity.title)}
    twice = [quantity.name for quantity in evidence.quantities if {quantity.name, quantity.title} & taken]
    if twice:
        raise CertoodError(f"expected new names of quantities in {evidence.__name__}, but there is {', '.join(twice)}")
    EVIDENCE.append(evidence)
    return evidence


def evidence_for(settings: Settings) -> list[Evidence]:
    """The evidence that these settings ask for; last what combines all of it."""
    return [one for one in (kind(settings) for kind in _every()) if one.wanted]


def quantities(*, smoothed: bool | None = None) -> tuple[Quantity, ...]:
    """All quantities, or only those of the smoothed detector (True) or of the network itself (False)."""
    return tuple(
        quantity for kind in _every() if smoothed is None or kind.smoothed == smoothed for quantity in kind.quantities
    )


def _every() -> list[type[Evidence]]:
    return [*EVIDENCE, Combined]
