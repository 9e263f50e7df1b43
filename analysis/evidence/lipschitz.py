"""Certified Lipschitz constants of a score: local ones on a grid of radii, and a global one."""

import math

import torch
from torch import Tensor

from certood.analysis.bounds import Analysis, LpBall, analyse, score_gradient
from certood.analysis.bounds.operations.norms import SLACK
from certood.analysis.question import Question


def local_lipschitz(question: Question, analysis: Analysis, ball: LpBall) -> Tensor:
    """Certified L (N,) with |S(y) − S(z)| ≤ L·‖y − z‖_p for all y, z of the ball; infinite where nothing is known."""
    found = score_gradient(analysis, ball, question.score, elementwise=ball.centre[0].numel() <= 256)
    return found.dual_norm


def nested(constants: Tensor) -> Tensor:
    """Constants (T, N) of growing balls, each lowered to those of the larger balls: what holds there holds inside as well."""
    return constants.flip(0).cummin(0).values.flip(0)


def global_lipschitz(question: Question) -> float:
    """A constant L with |S(y) − S(z)| ≤ L·‖y − z‖_p for all images in [0, 1]^d: a product of operator norms over the layers.

    Branches add up, joined branches combine by the p-norm; slopes and factors of products are those that occur on images. The
    last layer counts by its largest row, because every score here changes by at most its own constant times the largest
    change of a logit. Infinite where no bound is known.
    """
    graph, norm = question.graph, float(question.norm)
    cube = LpBall(torch.full((1, *graph.nodes[0].shape), 0.5, dtype=torch.float64, device=question.device), 0.5)
    boxes = analyse(graph, cube, "interval").boxes
    constants = [1.0]
    for index, node in enumerate(graph.nodes[1:], start=1):
        inputs = [constants[source] for source in node.inputs]
        shapes = [graph.nodes[source].shape for source in node.inputs]
        around = [boxes[source] for source in node.inputs]
        if index == len(graph.nodes) - 1:
            norms, combined = node.operation.element_norm(norm, shapes, around), math.inf
        else:
            norms, combined = node.operation.operator_norm(norm, shapes, around), norm
        # What does not change, or is not read, changes nothing, however little is known of the other factor.
        changes = [own * one if own and one else 0.0 for own, one in zip(norms, inputs, strict=True)]
        constants.append(node.operation.combined_change(combined, changes))
    return constants[-1] * question.score.lipschitz(graph.outputs) * (1 + SLACK)
