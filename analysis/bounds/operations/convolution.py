"""Convolutions, and their transposes: rows of single neurons are windows, which grow going backwards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations.base import Interval, LinearOperation, Operation, Rows
from certood.analysis.bounds.operations.broadcasting import along_axis
from certood.analysis.bounds.operations.norms import DUAL, SLACK
from certood.analysis.bounds.operations.precision import largest, relative_error, underflow
from certood.analysis.bounds.operations.weighted import Weighted

# Windows that cover more than one part in so many of the plane become whole planes.
WINDOW_SHARE = 2
# Windows of at least so many pixels go back through a convolution of stride 1 as convolutions do.
CONVOLVED_AREA = 9
# Into at most so many channels a transposed convolution goes by phases, and planes of at most so many places by a plain one.
FEW_CHANNELS = 16
SMALL_PLANE = 144
# A matrix product with fewer columns than this is slower than its arithmetic.
PRODUCT_COLUMNS = 96


class Convolution(Weighted):
    """A convolution in two dimensions with zero padding."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with kernels."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of what the kernel covers of a plane."""
        reach = [
            dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilation, self.weight.shape[2:], strict=True)
        ]
        return reach[0], reach[1]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """A product for every output channel of a group and element of the kernel."""
        return len(self.weight) // self.groups * self.weight.shape[2] * self.weight.shape[3]

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """See `convolution_norm`."""
        return [convolution_norm(self, shapes[0], p)]

    def followed_by(self, scale: Tensor, shift: Tensor, shape: torch.Size) -> Operation | None:
        """The convolution with scaled kernels, where scale and shift vary with the channel only."""
        factor, added = along_axis(scale, shape, 0), along_axis(shift, shape, 0)
        if factor is None or added is None:
            return None
        weight, bias = self.weight * factor[:, None, None, None], self.bias * factor + added
        return Convolution(weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def transpose_rows(self, rows: Rows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """As windows always: whole planes are windows that cover them."""
        return self.transpose_windows(rows if isinstance(rows, Windows) else Windows.whole(rows), shapes)

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Transposed convolution of the rows."""
        back = self.transpose_windows(Windows.whole(rows), shapes)
        return [part.dense() if isinstance(part, Windows) else part for part in back]

    def window_before(self, size: Sequence[int], plane: torch.Size) -> Sequence[int]:
        """Windows grow by the kernel; those that would cover most of the plane become whole planes."""
        kernel = self.weight.shape[2:]
        grown = [
            (own - 1) * stride + dilation * (extent - 1) + 1
            for own, stride, dilation, extent in zip(size, self.stride, self.dilation, kernel, strict=True)
        ]
        return grown if grown[0] * grown[1] * WINDOW_SHARE <= plane[1] * plane[2] else plane[1:]

    def transpose_windows(self, rows: Windows, shapes: Sequence[torch.Size]) -> Sequence[Rows]:
        """See `window_before`."""
        plane, rows = shapes[0], rows.unphased()
        grown = self.window_before(rows.size, plane)
        rows = rows.cleaned() if not rows.covers and grown != plane[1:] else rows.spread()
        if rows.values.dtype == torch.float32 and self._fits_phases(plane):
            return [self._by_phases(rows, plane)]
        if rows.covers:
            values = self._spread(rows, plane[1:], self.padding)
            return [Windows(values, rows.top, rows.left, plane, covers=True, clean=True)]
        top = rows.top * self.stride[0] - self.padding[0]
        left = rows.left * self.stride[1] - self.padding[1]
        return [Windows(self._spread(rows, grown, (0, 0)), top, left, plane)]

    def _fits_phases(self, plane: torch.Size) -> bool:
        stride, padding = self.stride[0], self.padding[0]
        square = self.stride == (stride, stride) and self.padding == (padding, padding) and self.dilation == (1, 1)
        even = plane[1] % stride == plane[2] % stride == 0 and self.weight.shape[2] == self.weight.shape[3]
        return square and even and stride > 1 and self.groups == 1 and plane[0] <= FEW_CHANNELS

    def _by_phases(self, rows: Windows, plane: torch.Size) -> Windows:
        """The transpose into few channels as one convolution of stride 1 to stride² times as many: every place gives the
        stride × stride places that it stands for.

        With out[s·i + a] = Σₜ x[i + (a + p − t)/s]·W[t] over the taps t for which this is a whole number.
        """
        step = self.stride[0]
        kernel, (least, most) = self._phase_kernel
        if rows.covers:
            pads = [(-least, extent // step - own + most) for extent, own in zip(plane[1:], rows.size, strict=True)]
        else:
            pads = [(most - least, most - least)] * 2
        flat = F.pad(rows.values.flatten(0, 1), (0, 0, *pads[1], *pads[0])).permute(0, 3, 1, 2)
        with torch.backends.nnpack.flags(enabled=False):  # as in `_convolved_back`
            values = F.conv2d(flat, kernel).permute(0, 2, 3, 1).unflatten(0, rows.top.shape)
        if rows.covers:
            return Windows(values, rows.top, rows.left, plane, covers=True, clean=True, step=step)
        return Windows(values, rows.top - most, rows.left - most, plane, step=step)

    @cached_property
    def _phase_kernel(self) -> tuple[Tensor, tuple[int, int]]:
        """The weights (s·s·C, outputs, q, q) of `_by_phases`, and the least and the largest shift (a + p − t)/s."""
        stride, padding, size = self.stride[0], self.padding[0], self.weight.shape[2]
        taps = [(a, t, (a + padding - t) // stride) for a in range(stride) for t in range(size)
                if (a + padding - t) % stride == 0]  # fmt: skip
        least, most = min(shift for _, _, shift in taps), max(shift for _, _, shift in taps)
        extent = most - least + 1
        kernel = self.weight.new_zeros(stride, stride, self.weight.shape[1], self.weight.shape[0], extent, extent)
        for (a, t, down), (b, u, right) in itertools.product(taps, taps):
            kernel[a, b, :, :, down - least, right - least] = self.weight[:, :, t, u].T
        return kernel.flatten(0, 2).contiguous(memory_format=torch.channels_last), (least, most)

    def _spread(self, rows: Windows, size: Sequence[int], padding: tuple[int, int]) -> Tensor:
        """The transposed convolution (N, R, *size, C).

        Small windows go by one matrix product for every element of the kernel, which costs less than a convolution's set-up.
        """
        if rows.covers or (self.stride == (1, 1) and rows.size[0] * rows.size[1] >= CONVOLVED_AREA):
            return self._convolved_back(rows.values, size, padding)
        kernel = self.weight.shape[2:]
        own = self.weight.unflatten(0, (self.groups, -1)).permute(3, 4, 0, 1, 2)
        count, total, height, width, _ = rows.values.shape
        values = rows.values.reshape(count * total * height * width, self.groups, -1)
        back = values.new_zeros(count, total, *size, self.groups * own.shape[4])
        taps = list(itertools.product(range(kernel[0]), range(kernel[1])))
        # Few columns make a slow product: all elements of the kernel at once where they are few.
        step = max(1, PRODUCT_COLUMNS // own.shape[4])
        for start in range(0, len(taps), step):
            some = taps[start : start + step]
            weights = own.flatten(0, 1)[start : start + len(some)]
            if self.groups == 1:
                parts = values[:, 0] @ weights[:, 0].permute(1, 0, 2).flatten(1)
            else:
                parts = torch.einsum("xgc,tgcd->xtgd", values, weights)
            parts = parts.reshape(count, total, height, width, len(some), -1)
            for place, (down, right) in enumerate(some):
                first = down * self.dilation[0] - padding[0], right * self.dilation[1] - padding[1]
                (near, near_place), (far, far_place) = (
                    _landing(begin, stride, extent, limit)
                    for begin, stride, extent, limit in zip(first, self.stride, (height, width), size, strict=True)
                )
                back[:, :, near_place, far_place] += parts[:, :, near, far, place]
        return back

    def _convolved_back(self, values: Tensor, size: Sequence[int], padding: tuple[int, int]) -> Tensor:
        around = [
            dilation * (kernel - 1) - pad
            for dilation, kernel, pad in zip(self.dilation, self.weight.shape[2:], padding, strict=True)
        ]
        small = values.shape[2] * values.shape[3] <= SMALL_PLANE and self.weight.shape[1] <= FEW_CHANNELS
        if values.dtype == torch.float32 and small and self.stride == (1, 1) and self.groups == 1 and min(around) >= 0:
            flat = values.flatten(0, 1).permute(0, 3, 1, 2).contiguous()
            # NNPACK convolves by transforms, whose rounding is not that of sums of products.
            with torch.backends.nnpack.flags(enabled=False):
                back = F.conv2d(flat, self._turned, None, 1, around, self.dilation)
            plain: Tensor = back.permute(0, 2, 3, 1).contiguous().unflatten(0, values.shape[:2])
            return plain
        # Channels last in memory, as the planes that windows are multiplied with.
        flat = values.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        # What the convolution left over at the far border, because its stride did not reach it.
        rest = [
            whole - ((extent - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
            for whole, extent, stride, pad, dilation, kernel in zip(
                size, flat.shape[2:], self.stride, padding, self.dilation, self.weight.shape[2:], strict=True
            )
        ]
        back = F.conv_transpose2d(flat, self.weight, None, self.stride, padding, rest, self.groups, self.dilation)
        found: Tensor = back.permute(0, 2, 3, 1).unflatten(0, values.shape[:2])
        return found

    @cached_property
    def _turned(self) -> Tensor:
        """The weights with which a transposed convolution of stride 1 is a convolution."""
        return self.weight.flip(2, 3).transpose(0, 1).contiguous()

    def unit_rows(self, neurons: Tensor, shapes: Sequence[torch.Size], plane: torch.Size) -> Rows | None:
        """The kernels of the neurons, each where it reads."""
        if self.groups != 1:
            return None
        channels = neurons // (plane[1] * plane[2])
        top = neurons // plane[2] % plane[1] * self.stride[0] - self.padding[0]
        left = neurons % plane[2] * self.stride[1] - self.padding[1]
        reach = self.extent
        if reach[0] * reach[1] * WINDOW_SHARE > shapes[0][1] * shapes[0][2]:
            return None
        kernels = self.weight.new_zeros(len(self.weight), *reach, self.weight.shape[1])
        kernels[:, :: self.dilation[0], :: self.dilation[1]] = self.weight.permute(0, 2, 3, 1)
        values = kernels.index_select(0, channels.flatten()).view(*channels.shape, *kernels.shape[1:])
        return Windows(values, top, left, shapes[0])

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The transposed convolution."""
        return [TransposedConvolution(self, shapes[0])]


def _landing(start: int, stride: int, extent: int, limit: int) -> tuple[slice, slice]:
    """Which of `extent` elements at start, start + stride, … fall into [0, limit), and where."""
    first = max(0, -(start // stride)) if start < 0 else 0
    last = min(extent, (limit - 1 - start) // stride + 1)
    last = max(last, first)
    place = start + first * stride
    return slice(first, last), slice(place, max(place, place + (last - first - 1) * stride + 1), stride)


class TransposedConvolution(LinearOperation):
    """The transpose of a convolution, without its bias: from its outputs to its inputs, of shape (C, H, W)."""

    def __init__(self, convolution: Convolution, shape: torch.Size) -> None:
        no_bias = torch.zeros_like(convolution.bias)
        geometry = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        self.convolution = Convolution(convolution.weight, no_bias, *geometry)
        self.magnitude = Convolution(convolution.weight.abs(), no_bias, *geometry)
        self.shape = shape

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The value (N, *shape)."""
        return self.convolution.transpose(inputs[0][:, None], [self.shape])[0][:, 0]

    def interval(self, inputs: Sequence[Interval]) -> Interval:
        """Centre and radius: the radius goes through |W|."""
        lower, upper = inputs[0]
        terms = self.convolution.products([], self.shape)
        share = relative_error(terms, lower.dtype)
        middle = self.forward([(lower + upper) / 2])
        reach = torch.add((upper - lower) / 2, largest(lower, upper), alpha=share)
        radius = self.magnitude.transpose(reach[:, None], [self.shape])[0][:, 0] + underflow(terms, lower.dtype)
        return middle - radius, middle + radius

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """The convolution of the rows."""
        back = self.convolution.forward([rows.flatten(0, 1)])
        return [back.view(*rows.shape[:2], *shapes[0])]

    def adjoints(self, shapes: Sequence[torch.Size]) -> list[LinearOperation]:
        """The convolution."""
        return [self.convolution]

    def products(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """The products of a value of the convolution."""
        return self.convolution.weight[0].numel()

    def terms(self, shapes: Sequence[torch.Size], shape: torch.Size) -> int:
        """The products of a coefficient of the convolution."""
        return self.convolution.products([shape], shapes[0])

    def operator_norm(self, p: float, shapes: Sequence[torch.Size], boxes: Sequence[Interval]) -> list[float]:
        """The norm of the convolution in the dual norm."""
        return [convolution_norm(self.convolution, self.shape, DUAL[p])]


def convolution_norm(operation: Convolution, shape: torch.Size, p: float) -> float:
    """An upper bound of the operator norm of a zero-padded convolution on planes of this shape.

    p = ∞ and 1: the largest absolute row and column sums over the kernel. p = 2: the smaller of √(‖A‖₁‖A‖_∞) (Schur) and the
    largest singular value over the Fourier frequencies of a circular convolution on a grid without wrap-around, of which
    the zero-padded one is a part (Sedghi et al., ICLR 2019, arXiv 1805.10408). A stride s makes of every s × s places of the
    plane as many channels of one place, on which the convolution has stride 1.
    """
    weight = operation.weight
    rows = float(weight.abs().sum((1, 2, 3)).max())
    columns = _column_sum(operation)
    if p == math.inf:
        return rows
    if p == 1:
        return columns
    schur = math.sqrt(rows * columns)
    reach, stride = operation.extent, operation.stride
    taps = [-(-own // step) for own, step in zip(reach, stride, strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], taps[0] * stride[0], taps[1] * stride[1])
    spread[:, :, : reach[0] : operation.dilation[0], : reach[1] : operation.dilation[1]] = weight
    parts = spread.unflatten(3, (taps[1], stride[1])).unflatten(2, (taps[0], stride[0]))
    spread = parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    grid = [
        -(-(size + 2 * pad) // step) + own
        for size, pad, step, own in zip(shape[1:], operation.padding, stride, taps, strict=True)
    ]
    if grid[0] * grid[1] * spread.shape[0] * spread.shape[1] > 2**26:
        return schur
    frequencies = torch.fft.fft2(spread, s=grid).permute(2, 3, 0, 1).unflatten(2, (operation.groups, -1))
    return min(schur, float(torch.linalg.matrix_norm(frequencies, 2).max()) * (1 + SLACK))


def _column_sum(operation: Convolution) -> float:
    """The largest absolute sum over the outputs that read one input: with a stride only every so many taps do."""
    magnitude = operation.weight.abs().unflatten(0, (operation.groups, -1)).sum(1)
    sums = [
        magnitude[..., _taps(0, down, operation), :][..., _taps(1, right, operation)].sum((2, 3)).max()
        for down in range(operation.stride[0])
        for right in range(operation.stride[1])
    ]
    return float(torch.stack(sums).max())


def _taps(axis: int, residue: int, operation: Convolution) -> list[int]:
    """The taps along an axis that fall on inputs of one residue modulo the stride."""
    taps = range(operation.weight.shape[2 + axis])
    return [tap for tap in taps if tap * operation.dilation[axis] % operation.stride[axis] == residue]
