"""Executors by name: what runs the jobs of a certification."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from certood.errors import CertoodError
from certood.optional import optional

if TYPE_CHECKING:  # the command line reads the names below, and loads no torch for them
    from certood.analysis.shares import Executor

# Processes of this machine need none: they write no files of their own.
PROCESSES = "processes"
EXECUTORS = (PROCESSES, "local", "slurm")
# Minutes that a job may run where nothing else is said: a day.
TIMEOUT = 24 * 60


def executor_by_name(name: str, logs: Path, options: Mapping[str, Any]) -> "Executor | None":
    """The executor called local or slurm, of submitit, which writes its scripts and logs to a folder; None for processes.

    `options` are those of submitit's AutoExecutor, such as `timeout_min`, `mem_gb`, `slurm_partition`. Raises CertoodError where
    submitit is not installed, Slurm is not there, or knows an option not.
    """
    if name == PROCESSES:
        if options:
            raise CertoodError(f"--job-option is about the executors {' and '.join(EXECUTORS[1:])}; leave it out")
        return None
    submitit = optional("submitit", CertoodError(f"--executor {name} needs the extra: pip install 'certood[cluster]'"))
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=name)
        executor.update_parameters(**{"name": "certood", "timeout_min": TIMEOUT, **options})
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise CertoodError(f"--executor {name}: {' '.join(str(error).split())}") from error
    return cast("Executor", executor)
