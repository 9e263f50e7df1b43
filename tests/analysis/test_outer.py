"""What a larger ball tells of a smaller one: bounds stay those of the smaller ball, and fewer neurons are bounded."""

import pytest
import torch

from certood.analysis.bounds import Analysis, LpBall, OuterBoxes, analyse, logits_of, methods
from certood.analysis.evidence import direct
from certood.analysis.question import Question
from certood.scores import Energy
from tests.analysis.networks import NETWORKS, RADII, captured, images, sampled

EYE = torch.eye(4, dtype=torch.float64)


def logit_rows(analysis: Analysis) -> tuple[torch.Tensor, torch.Tensor]:
    found = analysis.rows(EYE.expand(len(analysis.ball), 4, 4))
    return found.lower, found.upper


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_within_outer_boxes_hold_and_are_no_wider(name: str) -> None:
    graph, x = captured(name, trained=True), images()
    for norm, eps in RADII.items():
        outer = OuterBoxes.of(graph, analyse(graph, LpBall(x, 1.7 * eps, norm), "crown").boxes)
        lower, upper = logit_rows(analyse(graph, LpBall(x, eps, norm), "crown", outer=outer))
        alone_lower, alone_upper = logit_rows(analyse(graph, LpBall(x, eps, norm), "crown"))
        logits = graph.module(sampled(x, eps, norm, 200).flatten(0, 1)).view(200, len(x), 4).detach()
        assert (lower <= logits.amin(0) + 1e-9).all()
        assert (upper >= logits.amax(0) - 1e-9).all()
        # A tighter box does not always give a tighter line.
        slack = 1e-5 * (alone_upper - alone_lower)
        assert (lower >= alone_lower - slack).all()
        assert (upper <= alone_upper + slack).all()


def test_neurons_that_a_larger_ball_settles_are_not_bounded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = captured("residual", trained=True), images(3)
    # What the second ReLU reads; the first reads a convolution of the image, whose interval is exact.
    place, asked = 4, []
    tighten = methods._tighten

    def counted(analysis: Analysis, index: int, chosen: torch.Tensor) -> None:
        if index == place:
            asked.append(int(chosen.sum()))
        tighten(analysis, index, chosen)

    monkeypatch.setattr(methods, "_tighten", counted)
    larger = analyse(graph, LpBall(x, 0.03), "crown")
    low, high = larger.boxes[place]
    analyse(graph, LpBall(x, 0.028), "crown")
    analyse(graph, LpBall(x, 0.028), "crown", outer=OuterBoxes.of(graph, larger.boxes))
    _, alone, within = asked
    assert 0 < within <= int(((low < 0) & (high > 0)).sum()) < 0.7 * alone


@pytest.mark.parametrize("accepted", [True, False])
def test_a_search_gives_the_margins_of_every_ball_in_any_order(accepted: bool) -> None:
    """Radii that grow and shrink, of some of the images in another order: as if every ball were analysed alone."""
    graph, x = captured("conv", trained=True), images(5)
    scores = Energy()(graph(x))
    question = Question(graph, Energy(), float(scores.max() + 0.2) if accepted else float(scores.min() - 0.2))
    engine = direct.engine_by_name("certood")
    slack = direct._Slack(question, x, accepted, direct._Bounding(engine, "crown", 0, 2**30, torch.float64))
    generator = torch.Generator().manual_seed(0)
    lost, high = [], torch.ones(5, dtype=torch.float64)
    for _ in range(12):
        chosen = torch.randperm(5, generator=generator)[:3]
        # Once a ball is lost, only smaller ones are asked about.
        eps = high[chosen] * torch.rand(3, generator=generator, dtype=torch.float64) ** 2
        margins, _ = slack(chosen, eps)
        alone = question.margin_bounds(logits_of(analyse(graph, LpBall(x[chosen], eps), "crown")), accepted)
        torch.testing.assert_close(margins, alone, rtol=1e-6, atol=1e-9)
        lost.append(margins <= 0)
        high[chosen] = torch.where(margins <= 0, eps, high[chosen])
    assert 5 < int(torch.cat(lost).sum()) < 31
