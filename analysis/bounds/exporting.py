"""From a user's module to a list of ATen calls, by torch.export: done once, whatever the parameters are.

torch.export (not torch.fx): it traces any Python in the forward method, reports where in the user's code an operation
stands, and gives one set of ATen operations for methods, functions and modules alike. The batch axis is dynamic, so
the calls take any batch size afterwards. Operations that `decompositions` knows are replaced by simpler ones.
"""

import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from certood.analysis.bounds.decompositions import decomposition_table
from certood.analysis.bounds.float64_copy import float64_copy, implicit_eps, own_precision
from certood.analysis.bounds.layouts import Layout, described, number
from certood.errors import CannotCertify

# Operations that read nothing of a tensor but its shape, and what they fill another one with.
FILLED = {"zeros_like": 0.0, "new_zeros": 0.0, "ones_like": 1.0, "new_ones": 1.0, "full_like": None, "new_full": None}
# Operations that only give the same numbers another shape.
RESHAPES = ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")


@dataclass(frozen=True)
class Place:
    """The value of an earlier step, or of one of the exported tensors, as an argument."""

    name: str


@dataclass(frozen=True)
class Step:
    """One ATen call, whose arguments hold a `Place` for every tensor.

    `named` are all of its arguments by the names of its schema, and `defaults` the schema's defaults. `of_image` says
    whether it depends on the image; if so `layout` is that of its (first) value, None where the images of a batch do not
    stay apart. `dtype` is that of its value in a network in float64.
    """

    name: str
    target: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    named: Mapping[str, Any]
    defaults: Mapping[str, Any]
    of_image: bool
    layout: Layout | None
    dtype: torch.dtype | None
    source: str

    @property
    def operation(self) -> str:
        """The name of the operation without namespace and overload."""
        return _operation(self.target)


@dataclass(frozen=True)
class Exported:
    """A network as ATen calls: `stored` names the parameter, buffer or constant of every exported tensor.

    `module` is a copy of the network in eval mode and float64, `program` what torch.export made of it, `constants` are its
    tensors by name, `image` names the input and `results` the outputs.
    """

    module: nn.Module
    program: torch.export.ExportedProgram
    constants: Mapping[str, Tensor]
    stored: Mapping[str, str]
    image: str
    shape: torch.Size
    steps: tuple[Step, ...]
    results: tuple[str, ...]


def export(model: nn.Module, example: Tensor) -> Exported:
    """The ATen calls of a module in eval mode and float64, for images like `example` (1, C, H, W).

    Raises CannotCertify for weights that are not finite or a module that torch.export cannot trace.
    """
    module, program = _program(model, example)
    signature = program.graph_signature
    stored = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    layouts: dict[str, Layout | None] = {}
    steps: list[Step] = []
    image, results = "", ()
    for item in program.graph.nodes:
        if item.op == "placeholder" and item.name not in stored:
            image = item.name
            layouts[image] = Layout(torch.Size((1, *item.meta["val"].shape[1:])))
        elif item.op == "call_function" and (step := _step(item, layouts)) is not None:
            steps.append(step)
            if step.of_image:
                layouts[step.name] = step.layout
        elif item.op == "output":
            results = tuple(part.name for part in item.args[0])
    constants = {**program.state_dict, **program.constants}
    tensors = {name: tensor for name, tensor in constants.items() if isinstance(tensor, Tensor)}
    shape = torch.Size(example.shape[1:])
    return Exported(module, program, tensors, stored, image, shape, tuple(steps), results)


def _program(model: nn.Module, example: Tensor) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """A copy of the module in eval mode and float64, and its ATen graph with a dynamic batch axis."""
    broken = [
        name for name, value in model.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise CannotCertify(f"weights are infinite or not a number: {', '.join(broken[:5])}")
    plain = float64_copy(model, "cpu")
    # Two images: batch sizes 0 and 1 are special to torch.export.
    images = example[:1].detach().to("cpu", torch.float64).expand(2, *example.shape[1:]).contiguous()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                plain, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**20)},), strict=False
            )
            _refuse_unknown_steps(model, program)
            # PyTorch decomposes some operations itself where it prepares gradients, which it does not in this mode.
            with torch.inference_mode():
                program = program.run_decompositions(decomposition_table())
    except CannotCertify:
        raise
    except Exception as error:
        raise CannotCertify(
            f"torch.export cannot trace {type(model).__name__}: {str(error).strip().splitlines()[0]}; "
            "a network must be a fixed sequence of tensor operations for any batch size"
        ) from error
    return plain, program


def _refuse_unknown_steps(model: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Raise CannotCertify where rms_norm is called without ε in a network that is not in float64 itself."""
    precision = own_precision(model)
    if precision == torch.float64:
        return
    for item in program.graph.nodes:
        if item.op != "call_function" or _operation(item.target) != "rms_norm":
            continue
        named, _ = _bound(item.target, item.args, item.kwargs)
        if named.get("eps") is None:
            raise CannotCertify(
                "rms_norm without eps adds a number that depends on the precision, and bounds are of a copy in float64: "
                f"say eps={implicit_eps(precision)!r} in the network"
            )


def _step(item: Any, layouts: Mapping[str, Layout | None]) -> Step | None:
    """The call of a node; None where it only gives a number, or checks one."""
    value = item.meta.get("val")
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if not isinstance(first, Tensor):
        return None
    arguments, keywords = _places(item.args), {name: _places(part) for name, part in item.kwargs.items()}
    named, defaults = _bound(item.target, arguments, keywords)
    operation = _operation(item.target)
    if operation in FILLED:
        fill = named["fill_value"] if FILLED[operation] is None else FILLED[operation]
        shape = described(first.shape)[0]
        return Step(item.name, torch.full, (shape, fill), {"dtype": first.dtype}, {}, {}, False, None, first.dtype, "")
    sources = [layouts[place.name] for place in places((arguments, keywords)) if place.name in layouts]
    layout = _layout(item, first, [source for source in sources if source is not None]) if sources else None
    return Step(
        item.name,
        item.target,
        arguments,
        keywords,
        named,
        defaults,
        bool(sources),
        layout,
        first.dtype,
        source_of(item),
    )


def _operation(target: Any) -> str:
    return str(target).removeprefix("aten.").split(".", maxsplit=1)[0]


def _layout(item: Any, value: Tensor, sources: Sequence[Layout]) -> Layout | None:
    shape, axis = described(value.shape)
    if axis is None or len({(source.outer, source.inner) for source in sources}) != 1:
        return None
    if _operation(item.target) in RESHAPES:
        return sources[0].reshaped(shape, axis)
    return sources[0].carried(shape, axis)


def _places(argument: Any) -> Any:
    """An argument with places for tensors, and numbers that depend on the batch size as they are for one image."""
    if isinstance(argument, torch.fx.Node):
        value = argument.meta.get("val")
        if isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return number(value)
        return Place(argument.name)
    if isinstance(argument, (list, tuple)):
        return type(argument)(_places(part) for part in argument)
    return argument


def places(argument: Any) -> list[Place]:
    """All places in an argument, in order."""
    if isinstance(argument, Place):
        return [argument]
    if isinstance(argument, Mapping):
        argument = list(argument.values())
    if isinstance(argument, (list, tuple)):
        return [found for part in argument for found in places(part)]
    return []


def _bound(target: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arguments of a call by the names of its schema, and the schema's defaults."""
    if target is operator.getitem:
        return {"self": arguments[0], "index": arguments[1]}, {}
    schema = getattr(target, "_schema", None)
    if schema is None:
        return {str(place): argument for place, argument in enumerate(arguments)} | dict(keywords), {}
    defaults = {part.name: part.default_value for part in schema.arguments if part.has_default_value()}
    given = {part.name: argument for part, argument in zip(schema.arguments, arguments, strict=False)}
    values = defaults | given | dict(keywords)
    return {part.name: values[part.name] for part in schema.arguments}, defaults


def source_of(item: Any) -> str:
    """The innermost line of the user's code, from the stack that torch.export recorded."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.*)', item.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0]]
    if not (own or frames):
        return ""
    path, line, function, text = (own or frames)[-1]
    return f"{path}:{line} in {function}: {text.strip()}"
