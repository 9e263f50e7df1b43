"""OOD scores: functions of the logits, higher is more outlying, always; each in one file with all of its bounds.

`Score` (base.py) is the interface and `SCORES` (registry.py) the scores by name; protocol.py is what bounds are written
against.
"""

from certood.scores.absent_class import AbsentClass, AbsentClassLogProbability
from certood.scores.base import Score
from certood.scores.energy import Energy
from certood.scores.entropy import Entropy
from certood.scores.guarded import Guarded
from certood.scores.kl_uniform import KLUniform, UniformLogLikelihood
from certood.scores.max_logit import MaxLogit
from certood.scores.msp import MSP
from certood.scores.protocol import BoxBounds, GradientBox, Interval, LogitBounds, Logits, ScoreRows, Side, Tangents
from certood.scores.registry import GUARDED_SCORES, SCORES, score_by_name, score_of_description, suitable_scores

__all__ = [
    "GUARDED_SCORES",
    "MSP",
    "SCORES",
    "AbsentClass",
    "AbsentClassLogProbability",
    "BoxBounds",
    "Energy",
    "Entropy",
    "GradientBox",
    "Guarded",
    "Interval",
    "KLUniform",
    "LogitBounds",
    "Logits",
    "MaxLogit",
    "Score",
    "ScoreRows",
    "Side",
    "Tangents",
    "UniformLogLikelihood",
    "score_by_name",
    "score_of_description",
    "suitable_scores",
]
