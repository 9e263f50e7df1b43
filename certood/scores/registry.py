"""The scores by name, and scores from texts and records.

Installed packages add scores by entry points of the group `certood.scores`, whose name is that of the score:

    [project.entry-points."certood.scores"]
    my-score = "my_package.my_module:MyScore"
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from certood.errors import CertoodError
from certood.registry import Registry, named_parameters
from certood.scores.absent_class import AbsentClass
from certood.scores.base import Score
from certood.scores.energy import Energy
from certood.scores.entropy import Entropy
from certood.scores.guarded import Guarded
from certood.scores.kl_uniform import KLUniform
from certood.scores.max_logit import MaxLogit
from certood.scores.msp import MSP

SCORES: Registry[Score] = Registry(
    "score",
    "certood.scores",
    {
        "energy": Energy,
        "msp": MSP,
        "max-logit": MaxLogit,
        "entropy": Entropy,
        "absent-class": AbsentClass,
        "kl-uniform": KLUniform,
    },
)

# Scores of a classifier's outputs and, after them, its guard's: their bounds are those of a part of the network.
GUARDED_SCORES: Registry[Score] = Registry(
    "score of a guarded detector", "certood.guarded_scores", {"guarded": Guarded}
)


def score_by_name(text: str, like: Score | None = None) -> Score:
    """The score that a text names, with parameters where it gives them: "energy", "energy:temperature=2".

    A guarded score takes all but α from `like`, if that is of the same name: its constants belong to a detector. Raises
    CertoodError for an unknown name, which names the nearest known one, and for parameters that do not fit.
    """
    name, parameters = named_parameters(text)
    own = like.parameters if like is not None and like.needs_guard and like.name == name else {}
    found = _made(name, own | parameters)
    for key, value in own.items():
        if key != "alpha" and found.parameters[key] != value:
            raise CertoodError(f"{key!r} of score {name!r} is the detector's, {value!r}: only alpha may be another")
    return found


def score_of_description(description: Mapping[str, Any]) -> Score:
    """The score of a record of its name and parameters (`Score.description`)."""
    parameters = dict(description)
    return _made(str(parameters.pop("name", "")), parameters)


def suitable_scores(classes: int, outputs: int) -> list[Score]:
    """The scores, with their default parameters, that make sense for a network with so many classes and outputs."""
    found = [kind() for kind in SCORES.importable().values()]
    return [score for score in found if score.suits(classes, outputs)]


def _made(name: str, parameters: Mapping[str, Any]) -> Score:
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 (importing the scores stays light)

    kind = (GUARDED_SCORES if name in GUARDED_SCORES.names() else SCORES).find(name)
    hints = get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in parameters.items():
        if key not in known:
            expected = f"expected {', '.join(known)}" if known else "it has none"
            raise CertoodError(f"score {name!r} has no parameter {key!r}; {expected}")
        try:
            values[key] = TypeAdapter(known[key]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise CertoodError(f"parameter {key!r} of score {name!r}, given as {value!r}: {reason}") from error
    return kind(**values)
