"""A damaged file of a run is read, or is one CertoodError: never a traceback, never a hang. The long run is a benchmark."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from certood.checkpoints import load_checkpoint
from certood.cli import main
from certood.runs import RunDirectory
from certood.train.loop import fit
from certood.train.recipe import load_recipe
from tests.certood.damaged_files import READERS, outcome
from tests.certood.onnx_oracles import NETWORK
from tests.quick import first_is_quick


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("fuzz") / "run")


def make_run(folder: Path) -> RunDirectory:
    """A small run with every file that is read."""
    found = RunDirectory(folder)
    short = ["training.epochs=2", "training.steps_per_epoch=2", "run.device=cpu", "model.options.width=4"]
    fit(load_recipe("digits-ce", short), folder, progress=False)
    arguments = ["certify", str(folder), "--limit", "1", "--ood", "digits-near"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    shutil.copy(found.checkpoint, folder / "kept.safetensors")
    torch.save(load_checkpoint(folder).model.state_dict(), folder / "weights.pt")
    NETWORK.write(folder / "network.onnx")
    return found


@pytest.mark.parametrize("reader", first_is_quick(READERS))
def test_a_damaged_file_is_read_or_refused(reader: str, run: RunDirectory) -> None:
    seen = set()

    @seed(1)
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def every(number: int) -> None:
        seen.add(outcome(run, reader, number))

    every()
    assert "refused" in seen
    assert seen <= {"read", "refused"}
