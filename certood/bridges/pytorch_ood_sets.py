"""pytorch-ood's image sets under the name `pytorch-ood:NAME`, as they lie below the root."""

import inspect
from dataclasses import replace
from typing import Any

import torch

from certood.data.request import Request
from certood.data.torchvision_sets import PictureDataset
from certood.errors import DataError
from certood.optional import optional
from certood.suggestions import did_you_mean

PREFIX = "pytorch-ood"


def load_pytorch_ood(request: Request) -> PictureDataset:
    """The set of pytorch-ood of that name and split, without labels; nothing is downloaded.

    It is in colour unless the name says otherwise. Raises DataError where pytorch-ood is not installed, does not have the name,
    or does not find the files, and where the name and `data.size` give no size: pictures of these sets may differ in theirs.
    """
    name = request.source.partition(":")[2]
    kind = _dataset_class(name)
    if request.form.side is None:
        raise DataError(
            f"{request.source} has pictures of its own sizes: give a size (data.size, or {request.source}?size=)"
        )
    parameters = inspect.signature(kind.__init__).parameters
    needed = [
        key
        for key, value in parameters.items()
        if key not in ("self", "root") and value.default is inspect.Parameter.empty
    ]
    if needed or "root" not in parameters:
        raise DataError(f"{request.source} needs more than a folder ({', '.join(needed)}); use folder:PATH")
    given: dict[str, Any] = {"root": str(request.root)} | ({"download": False} if "download" in parameters else {})
    split: dict[str, Any] = {key: request.split for key in ("split", "subset") if key in parameters}
    if "train" in parameters:
        split["train"] = request.split == "train"
    try:
        raw = kind(**given, **split)
    except Exception as error:
        if split and _opens(kind, given):
            raise DataError(f"{request.source} has no split {request.split!r}; use folder:PATH") from error
        raise DataError(
            f"{request.source} was not found, or is damaged, in {request.root.absolute()} ({error}); get it in Python with "
            f"pytorch_ood.dataset.img.{name}({str(request.root)!r}, download=True)"
        ) from error
    form = replace(request.form, colour=request.form.colour or "rgb")
    return PictureDataset(request.name, raw, form, torch.arange(len(raw)))


def _opens(kind: Any, given: dict[str, Any]) -> bool:
    """Whether the set is there in the split that it has by default."""
    try:
        kind(**given)
    except Exception:
        return False
    return True


def _dataset_class(name: str) -> Any:
    missing = DataError(f"{PREFIX}:{name} needs pytorch-ood: pip install 'certood[{PREFIX}]'")
    img = optional("pytorch_ood.dataset.img", missing)
    known = [
        one for one in dir(img) if inspect.isclass(getattr(img, one)) and hasattr(getattr(img, one), "__getitem__")
    ]
    if name not in known:
        hint = did_you_mean(name, known)
        raise DataError(f"pytorch-ood has no image set {name!r}{hint} Known: {', '.join(known)}")
    return getattr(img, name)
