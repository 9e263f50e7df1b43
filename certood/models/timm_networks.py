"""timm's networks by name: without pretrained weights, so that nothing is fetched."""

from typing import Any

from certood.errors import ArchitectureError
from certood.models.classifier import Interface
from certood.models.wrapped import WrappedClassifier


def timm_classifier(interface: Interface, name: str, **options: Any) -> WrappedClassifier:
    """One of timm's classification networks with fresh weights; names of hubs (`hf-hub:`) are refused.

    Raises ArchitectureError where timm is not installed or does not have the name.
    """
    try:
        import timm  # noqa: PLC0415 (optional, and slow to import)
    except ImportError as error:
        raise ArchitectureError(f"timm:{name} needs timm: pip install timm") from error
    if name not in timm.list_models():
        near = timm.list_models(f"*{name[:8]}*")[:5] if name.isidentifier() else []
        raise ArchitectureError(
            f"timm has no network {name!r}{'; did you mean ' + ', '.join(near) + '?' if near else ''}"
        )
    inner = timm.create_model(
        name, pretrained=False, num_classes=interface.num_classes, in_chans=interface.input_shape[0], **options
    )
    return WrappedClassifier(interface, inner, f"timm:{name}")
