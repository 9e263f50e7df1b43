"""What is told of a training run while it goes on."""

import pytest

from certood.train import progress
from certood.train.progress import TrainingProgress

ROW = {"epoch": 1, "loss": 0.5, "accuracy": 0.9, "gradient_norm_in": 1.0, "gradient_norm_out": 2.0, "seconds": 8.0}


class Clock:
    """Ten seconds between any two looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10
        return self.now


def test_a_log_file_has_a_line_now_and_then_and_one_an_epoch(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", Clock())
    monkeypatch.setattr(progress, "LINE_SECONDS", 30)
    # Four steps were done by an earlier command: what is left is estimated from the six of this one.
    with TrainingProgress("greg", steps=10, done=4, enabled=True) as shown:
        for _ in range(6):
            shown.step()
        shown.epoch(ROW, 1)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "step 7/10  about 30 s left",
        "epoch 1/1  loss 0.5000  accuracy 0.9000  gradient norm in 1 out 2  8.0 s",
    ]


def test_nothing_is_told_where_nothing_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    with TrainingProgress("greg", steps=2, done=0, enabled=False) as shown:
        shown.step()
        shown.step()
        shown.epoch(ROW, 1)
    assert capfd.readouterr().err == ""
