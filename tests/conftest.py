"""Settings for every test: one thread, since small tensors gain nothing from more, and tests run in several processes."""

import os

import pytest
import torch

from certood import devices
from certood.analysis import certify_run

# For the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture
def short_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any processor trains in bfloat16, however slowly."""
    monkeypatch.setattr(devices, "short_products", lambda _: "any processor")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`certify` draws no figures, which take seconds."""
    monkeypatch.setattr(certify_run, "draw_figures", lambda *_: [])
