"""Windows: kernel, strides, dilations and padding of convolutions and poolings, as ONNX gives them."""

from collections.abc import Sequence
from dataclasses import dataclass

from certood.onnx.calls import Call


@dataclass(frozen=True)
class Window:
    """A window on the spatial axes: sizes by axis; padding before and after, without what rounding up adds."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """How many values a window spans along each axis."""
        return tuple((size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True))

    @property
    def symmetric(self) -> bool:
        """Whether as much is padded before as after."""
        return self.before == self.after


def read_window(call: Call, kernel: Sequence[int], spatial: Sequence[int], *, ceil: bool = False) -> Window:
    """The window of a node for an input of these spatial sizes, automatic padding resolved."""
    rank = len(spatial)
    strides = call.attribute("strides", [1] * rank)
    dilations = call.attribute("dilations", [1] * rank)
    pads = call.attribute("pads", [0] * 2 * rank)
    automatic = call.attribute("auto_pad", "NOTSET")
    if not len(kernel) == len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise call.node.error(
            f"kernel {list(kernel)}, strides {strides}, dilations {dilations} and pads {pads} do not suit {rank} spatial axes"
        )
    window = Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:rank]), tuple(pads[rank:]))
    if automatic == "NOTSET":
        return window
    if automatic == "VALID":
        nothing = (0,) * rank
        return Window(window.kernel, window.strides, window.dilations, nothing, nothing)
    if automatic not in ("SAME_UPPER", "SAME_LOWER") or ceil:
        raise call.node.error(f"auto_pad {automatic!r}{' with ceil_mode' if ceil else ''} is not supported")
    totals = [
        max(0, (-(-size // stride) - 1) * stride + extent - size)
        for size, stride, extent in zip(spatial, window.strides, window.extents, strict=True)
    ]
    less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
    return Window(window.kernel, window.strides, window.dilations, before, after)


def torch_padding(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding as torch.nn.functional.pad takes it: the last axis first."""
    return [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
