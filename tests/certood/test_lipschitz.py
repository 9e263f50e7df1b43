"""Networks that are 1-Lipschitz by construction: what is stored is plain, and its constant is ours."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from certood.analysis.certification import question_of
from certood.analysis.evidence.global_constant import global_constant
from certood.checkpoints import load_checkpoint
from certood.data import load_set, to_pixels
from certood.errors import ArchitectureError
from certood.models import build_model
from certood.models.lipschitz import LipschitzCNN
from certood.train.loop import fit
from certood.train.recipe import load_recipe

SHAPE = (2, 8, 8)


def network(**options: Any) -> LipschitzCNN:
    found = build_model(
        "lipschitz-cnn", num_classes=3, input_shape=SHAPE, mean=[0.4, 0.5], std=[0.25, 0.5], options=options
    )
    assert isinstance(found, LipschitzCNN)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deel.torchlip", reason="the extra certood[lipschitz] is not installed")
    folder = tmp_path_factory.mktemp("runs") / "lipschitz"
    settings = [
        "run.device=cpu",
        "training.epochs=2",
        "training.steps_per_epoch=6",
        "model.options={width=4, hidden=8}",
    ]
    fit(load_recipe("digits-lipschitz", settings), folder, progress=False)
    return folder


def test_what_is_stored_is_the_same_function_of_plain_layers() -> None:
    pytest.importorskip("deel.torchlip", reason="the extra certood[lipschitz] is not installed")
    torch.manual_seed(0)
    model = network(width=4, hidden=8, scale=3.0)
    images = torch.rand(5, *SHAPE)
    model.train()(images)
    model.eval()
    plain, changed = model.stored()
    assert changed == {"constrained": False}
    torch.testing.assert_close(plain(images), model(images))
    assert sorted(plain.state_dict()) == sorted(network(width=4, hidden=8, constrained=False).state_dict())
    assert not plain.training


def test_the_constant_of_a_run_is_ours_and_needs_no_library(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("deel"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    detector = load_checkpoint(trained)
    question = question_of(detector, 2)
    constant = global_constant(question)
    # Logits are ten times those of a 1-Lipschitz function of normalised pixels; the layers are orthogonal up to 1e-3.
    assert constant == pytest.approx(10 / min(detector.std), rel=0.01)
    images = to_pixels(load_set("digits-photo", root=Path()).batch(torch.arange(8))).double()
    moved = (images + 0.1 * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()).clamp(0, 1)
    distance = (moved - images).flatten(1).norm(dim=1)
    change = (question.scores(moved) - question.scores(images)).abs()
    assert (change <= constant * distance).all()
    assert (change > 0.02 * constant * distance).any(), "the constant says something"
    with pytest.raises(ArchitectureError, match=r"pip install 'certood\[lipschitz\]'"):
        network()


def test_the_options_of_a_run_are_kept(trained: Path) -> None:
    detector = load_checkpoint(trained)
    assert detector.options == {"width": 4, "hidden": 8, "constrained": False}


def test_sides_that_do_not_fit_are_named() -> None:
    with pytest.raises(ArchitectureError, match=r"whose sides 4 divides, got 30×32; use data.size"):
        build_model(
            "lipschitz-cnn",
            num_classes=3,
            input_shape=(1, 30, 32),
            mean=[0.5],
            std=[0.5],
            options={"constrained": False},
        )
