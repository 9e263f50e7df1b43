"""Run directories: the names of their files, who may write there, and the image sets that belong to them."""

from certood.runs.data import load_run_data
from certood.runs.directory import RunDirectory

__all__ = ["RunDirectory", "load_run_data"]
