"""What every operation promises, over one example of each: value, interval, relaxation, transpose, norm, gradient, rounding."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from certood.analysis.bounds import operations as package
from certood.analysis.bounds.linear.rounding import linear_loss
from certood.analysis.bounds.linear.windows import Windows
from certood.analysis.bounds.operations import (
    Elementwise,
    Input,
    JointRelaxation,
    LinearOperation,
    Operation,
    in_precision,
)
from certood.errors import CannotCertify
from tests.analysis.operation_examples import EXAMPLES, Example, dense
from tests.quick import first_is_quick

NORMS = (math.inf, 2.0, 1.0)
LINEAR = {name: one for name, one in EXAMPLES.items() if isinstance(one.operation, LinearOperation)}
CURVED = {name: one for name, one in EXAMPLES.items() if not isinstance(one.operation, LinearOperation)}
every = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
every_linear = pytest.mark.parametrize("example", LINEAR.values(), ids=LINEAR)
every_curved = pytest.mark.parametrize("example", CURVED.values(), ids=CURVED)


def test_every_operation_has_an_example() -> None:
    kinds = {kind for _, kind in inspect.getmembers(package, inspect.isclass) if issubclass(kind, Operation)}
    concrete = {kind for kind in kinds if not inspect.isabstract(kind)} - {Input}
    assert {type(example.operation) for example in EXAMPLES.values()} >= concrete
    functions = {name for name, one in vars(package.activations).items() if isinstance(one, package.Activation)}
    named = {one.operation.name for one in EXAMPLES.values() if isinstance(one.operation, package.Activation)}
    assert {name.lower() for name in functions} <= named


@every
def test_its_value_is_that_of_pytorch(example: Example) -> None:
    points = example.points(30)
    torch.testing.assert_close(example.operation.forward(points), example.value(*points), rtol=1e-6, atol=1e-7)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_value_leaves_the_interval(example: Example, dtype: torch.dtype) -> None:
    own = in_precision(example.operation, dtype)
    boxes = [(low.to(dtype), high.to(dtype)) for low, high in example.boxes()]
    lower, upper = own.interval(boxes)
    assert lower.dtype == upper.dtype == dtype
    values = example.operation.forward(example.points(300))
    # Inputs are rounded to float32 as well.
    hair = 1e-13 if dtype == torch.float64 else 2e-5 * (1 + float(values.abs().max()))
    assert (lower <= values + hair).all()
    assert (upper >= values - hair).all()
    # No wider than twice what corners and random points reach in some element, or exact for monotone functions.
    assert ((upper - lower).max() <= 2.5 * (values.amax(0) - values.amin(0)).max() + 1e-3).all()


@every
def test_short_formats_and_gradients_pass_through_value_and_interval(example: Example) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        own = in_precision(example.operation, dtype)
        tensors = [value for value in vars(own).values() if isinstance(value, Tensor) and value.is_floating_point()]
        for tensor in tensors:
            tensor.requires_grad_()
        boxes = [(low.to(dtype), high.to(dtype)) for low, high in example.boxes()]
        kept = [(low.clone(), high.clone()) for low, high in boxes]
        for _ in range(2):  # nothing that a first pass keeps may stand in the way of a second one
            lower, upper = own.interval(boxes)
            value = own.forward([low for low, _ in boxes])
            assert lower.dtype == upper.dtype == value.dtype == dtype
            if tensors:
                found = torch.autograd.grad((upper - 2 * lower + value).sum(), tensors, allow_unused=True)
                assert any(one is not None and bool((one != 0).any()) for one in found)
                assert all(one is None or bool(one.isfinite().all()) for one in found)
        for box, copy in zip(boxes, kept, strict=True):
            assert all(torch.equal(one, two) for one, two in zip(box, copy, strict=True))
        for tensor in tensors:
            tensor.requires_grad_(False)


@every_linear
def test_the_transpose_is_that_of_the_matrix(example: Example) -> None:
    own, sizes = example.operation, example.sizes
    assert isinstance(own, LinearOperation)
    points = example.points(2)
    value = own.forward(points)
    origin = own.forward([torch.zeros_like(point) for point in points])
    rows = torch.randn(2, 5, *value.shape[1:], dtype=torch.float64)
    back = own.transpose(rows, sizes)
    asked = (rows * (value - origin)[:, None]).flatten(2).sum(2)
    found = sum((part * point[:, None]).flatten(2).sum(2) for part, point in zip(back, points, strict=True))
    torch.testing.assert_close(found, asked, rtol=1e-10, atol=1e-10)
    for part, adjoint in zip(back, own.adjoints(sizes), strict=True):
        torch.testing.assert_close(adjoint.forward([rows[:, 0]]), part[:, 0], rtol=1e-10, atol=1e-10)
    if rows.ndim == 5:
        for one, two in zip(own.transpose_rows(Windows.whole(rows), sizes), back, strict=True):
            plain = one.dense() if isinstance(one, Windows) else one
            torch.testing.assert_close(plain, two, rtol=1e-10, atol=1e-10)


@every_curved
def test_no_value_lies_below_the_relaxation(example: Example) -> None:
    own, boxes = example.operation, example.boxes()
    points = example.points(300)
    value = own.forward(points)
    if isinstance(own, Elementwise):
        lines = [
            own.lines(*boxes[0]),
            *(own.lines_at(torch.full_like(boxes[0][0], at), *boxes[0]) for at in (0.0, 0.3, 1.0)),
        ]
        for one in lines:
            assert (one.lower_slope * points[0] + one.lower_shift <= value + 1e-12).all()
            assert (one.upper_slope * points[0] + one.upper_shift >= value - 1e-12).all()
        return
    assert isinstance(own, JointRelaxation)
    rows = torch.randn(1, 6, *value.shape[1:], dtype=torch.float64)
    back, constant = own.transpose_lower(rows, boxes, example.sizes)
    asked = (rows * value[:, None]).flatten(2).sum(2)
    found = sum((part * point[:, None]).flatten(2).sum(2) for part, point in zip(back, points, strict=True)) + constant
    assert (found <= asked + 1e-11).all()
    assert found.isfinite().all()


@every
@pytest.mark.parametrize("p", first_is_quick(NORMS))
def test_no_ratio_exceeds_the_operator_norm(example: Example, p: float) -> None:
    points, order = example.points(24), {math.inf: math.inf, 2.0: 2, 1.0: 1}[p]
    if isinstance(example.operation, package.Gate):
        assert example.operation.operator_norm(p, example.sizes, example.boxes())[0] >= 1
        return
    found = example.operation.operator_norm(p, example.sizes, example.boxes())
    elements = example.operation.element_norm(p, example.sizes, example.boxes())
    dual = {math.inf: 1, 2.0: 2, 1.0: math.inf}[p]
    for which, (norm, element) in enumerate(zip(found, elements, strict=True)):
        jacobians = dense(example, points, which)
        largest = float(torch.linalg.matrix_norm(jacobians, order).max())
        assert largest <= norm * (1 + 1e-9)
        # Sharp where a linear map is a matrix of numbers and not of shapes, and within what is known of the others.
        assert norm <= 3.1 * largest + 1e-9
        rows = float(torch.linalg.vector_norm(jacobians, dual, dim=2).max())
        assert rows <= element * (1 + 1e-9)
    # Several inputs that change together.
    one, two = (example.points(20, seed) for seed in (1, 2))
    changes = [(a - b).flatten(1).norm(p, dim=1) for a, b in zip(one, two, strict=True)]
    moved = (example.value(*one) - example.value(*two)).flatten(1).norm(p, dim=1)
    for place in range(20):
        parts = [norm * float(change[place]) for norm, change in zip(found, changes, strict=True)]
        assert float(moved[place]) <= example.operation.combined_change(p, parts) * (1 + 1e-9)


@every
def test_no_gradient_leaves_the_chain(example: Example) -> None:
    own, points = example.operation, example.points(80)
    if isinstance(own, package.Gate):
        with pytest.raises(CannotCertify, match="derivative of Gate"):
            own.gradient(example.sizes, example.boxes())
        return
    value = own.forward([low for low, _ in example.boxes()])
    cotangent = torch.randn(1, *value.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for which, chain in enumerate(own.gradient(example.sizes, example.boxes())):
        lower = upper = cotangent
        for operation, shape in chain:
            lower, upper = operation.interval([(lower, upper)])
            assert lower.shape[1:] == shape
        exact = torch.einsum("o,poi->pi", cotangent.flatten(), dense(example, points, which))
        assert (lower.flatten(1) <= exact + 1e-7).all()
        assert (upper.flatten(1) >= exact - 1e-7).all()


@every_linear
def test_rounding_in_float32_is_what_products_say(example: Example) -> None:
    """Rows go back in float32: what they are off by, times how far inputs may lie away, is no more than the stated loss."""
    own, sizes = example.operation, example.sizes
    assert isinstance(own, LinearOperation)
    boxes = example.boxes()
    lower, upper = own.interval(boxes)
    rounded = in_precision(own, torch.float32)
    assert isinstance(rounded, LinearOperation)
    shape = lower.shape[1:]
    loss = linear_loss(own, upper - lower, sizes, shape, torch.float32)
    rows = torch.randn(1, 200, *shape, dtype=torch.float32)
    exact, found = own.transpose(rows.double(), sizes), rounded.transpose(rows, sizes)
    apart = sum(
        ((one - two.double()).abs() * (high - low)[:, None] / 2).flatten(2).sum(2)
        for one, two, (low, high) in zip(exact, found, boxes, strict=True)
    )
    assert (apart <= (rows.double().abs() * loss[:, None]).flatten(2).sum(2)).all()
    if (loss == 0).all():
        assert own.products(sizes, shape) == 0
        assert (torch.as_tensor(apart) == 0).all()


@every_linear
def test_a_computed_value_is_as_near_to_the_exact_one_as_it_says(example: Example) -> None:
    """In float32, where float64 is the exact value; the same operation in float64 may be off by a 10⁻⁸th of that."""
    rounded = in_precision(example.operation, torch.float32)
    exact = in_precision(rounded, torch.float64)
    assert isinstance(rounded, LinearOperation)
    assert isinstance(exact, LinearOperation)
    point = [1000 * point.float() for point in example.points(50)]
    value, true = rounded.forward(point), exact.forward([part.double() for part in point])
    off = rounded.residual(point, value)
    assert off.shape == value.shape
    assert ((value.double() - true).abs() <= off).all()
    assert (off <= 1e-3 * (1 + true.abs().max())).all()
    assert (exact.residual([part.double() for part in point], true) <= 1e-12 * (1 + true.abs().max())).all()


@every_linear
def test_what_follows_is_folded_or_left_alone(example: Example) -> None:
    points = example.points(5)
    value = example.operation.forward(points)
    for axes in ((0,), tuple(range(value.ndim - 1))):
        shape = [size if axis in axes else 1 for axis, size in enumerate(value.shape[1:])]
        scale, shift = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
        joined = example.operation.followed_by(scale, shift, value.shape[1:])
        if joined is not None:
            torch.testing.assert_close(joined.forward(points), scale * value + shift, rtol=1e-10, atol=1e-10)


def test_an_unknown_operation_has_safe_defaults() -> None:
    class Unknown(Operation):
        def forward(self, inputs: list[Tensor]) -> Tensor:  # type: ignore[override]
            return inputs[0]

        def interval(self, inputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return inputs[0]

    own, sizes = Unknown(), [torch.Size((3,))]
    assert own.operator_norm(2.0, sizes, []) == own.element_norm(2.0, sizes, []) == [math.inf]
    assert own.affine is None
    assert own.followed_by(torch.ones(()), torch.ones(()), sizes[0]) is None
    with pytest.raises(CannotCertify, match="derivative of Unknown has no bounds"):
        own.gradient(sizes, [])
