"""Train out-of-distribution detectors by gradient regularisation, measure them, and certify them.

Images are tensors in [0, 1] of shape (N, C, H, W) everywhere (pixel space); a score is higher for outliers everywhere; an
image is accepted as in-distribution when its score is at most the detector's threshold γ.

>>> import certood
>>> certood.train.fit("digits-greg", "runs/mine")              # recipe -> run directory, evaluated
>>> detector = certood.load("runs/mine")                       # network, score and γ
>>> detector.accepts(images)                                   # bool (N,)
>>> certood.certify(detector, images, eps=0.02)                # a record an image: radii, bounds, verdict
>>> certood.certify("runs/mine", eps=0.02)                     # the run's own test images, as `certood certify` does
>>> certood.read_certificates("runs/mine").to_frame()          # the same records as a table of pandas
>>> certood.analysis.report(["runs/mine"], "report.html")      # theory beside benchmark

`load`, `certify`, `read_certificates` and the subpackages `train` and `analysis` are imported when they are first used, so that
`import certood` stays fast and takes no torch. The core never imports `train` or `analysis`; this façade, which only hands
their names on, is the one exception.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certood import analysis, train
    from certood.analysis import certify, read_certificates
    from certood.checkpoints import load
    from certood.detector import Detector

try:
    __version__ = version("certood")
except PackageNotFoundError as missing:
    raise ImportError(
        f"certood lies at {Path(__file__).parents[1]}, but is not installed for this Python; install it with "
        f"`pip install {Path(__file__).parents[1]}`, or use the environment that `uv sync` makes there"
    ) from missing
__all__ = ["Detector", "__version__", "analysis", "certify", "load", "read_certificates", "train"]

# Name -> the module that has it; None: a subpackage.
_LAZY = {
    "Detector": "certood.detector",
    "analysis": None,
    "certify": "certood.analysis",
    "load": "certood.checkpoints",
    "read_certificates": "certood.analysis",
    "train": None,
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'certood' has no attribute {name!r}")
    module = _LAZY[name]
    found = (
        importlib.import_module(f"certood.{name}") if module is None else getattr(importlib.import_module(module), name)
    )
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
