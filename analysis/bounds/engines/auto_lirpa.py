"""auto_LiRPA 0.3 (Xu et al., NeurIPS 2020) beside a current PyTorch: an optional second engine, and the oracle of ours.

A checkout's development environment has it (`uv sync`); elsewhere it is installed with
`pip install --no-deps auto-lirpa==0.3 && pip install appdirs tqdm packaging setuptools`. Its bounds of l1 and l2 balls are not
sound where the first operation is elementwise, so only l_inf balls are taken here.
"""

import contextlib
import copy
import importlib
import io
import math
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certood.analysis.bounds.ball import Bounds, LpBall
from certood.analysis.bounds.engines.base import Engine
from certood.analysis.bounds.graph import Graph
from certood.analysis.bounds.outer import OuterBoxes
from certood.errors import CannotCertify, CertoodError
from certood.models.classifier import Normalise

METHODS = {"interval": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN", "alpha-crown": "CROWN-Optimized"}
# PyTorch 2.14 made the gradient of clamp zero at its ends, where slopes start: they are kept inside by so much.
INSIDE = 1e-6
REMEDY = "install it with `pip install --no-deps auto-lirpa==0.3` and appdirs, tqdm, packaging, setuptools"


def load_auto_lirpa() -> types.ModuleType:
    """The package, with what a current NumPy and PyTorch no longer have put back; raises CertoodError where it is absent."""
    _mend_imports()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("auto_LiRPA")
    except ImportError as error:
        raise CertoodError(f"auto_LiRPA cannot be imported ({error}); {REMEDY}") from error
    _mend_package(package)
    return package


class AutoLirpaEngine(Engine):
    """auto_LiRPA, which parses the network once a call, so that all images of a ball go together."""

    name = "auto-lirpa"
    norms = frozenset({math.inf})

    def analyse(
        self,
        graph: Graph,
        ball: LpBall,
        method: str,
        *,
        iterations: int = 20,
        max_memory: float | None = None,
        dtype: torch.dtype = torch.float64,
        outer: OuterBoxes | None = None,
    ) -> "AutoLirpa":
        """See `AutoLirpa`; memory and precision are its own, and it makes no use of outer boxes."""
        return AutoLirpa(graph, ball, method, iterations=iterations)

    def require(self) -> None:
        """Import the package."""
        load_auto_lirpa()


class AutoLirpa:
    """Linear bounds by auto_LiRPA over one l_inf ball, to be read like an `Analysis`: `rows` of the logits.

    In float64, except α-CROWN, which that engine has in float32 only. Raises CertoodError where the package is not installed,
    and CannotCertify for another norm, or a network that it does not take.
    """

    def __init__(
        self,
        graph: Graph,
        ball: LpBall,
        method: str = "crown",
        *,
        iterations: int = 20,
        dtype: torch.dtype | None = None,
    ) -> None:
        if ball.norm != math.inf:
            raise CannotCertify("auto_LiRPA is not sound for l1 and l2 balls around a normalisation layer; use l_inf")
        if graph.module is None:
            raise CannotCertify("auto_LiRPA needs the module from which a graph was captured")
        if method not in METHODS:
            raise CertoodError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
        self.package, self._module = load_auto_lirpa(), graph.module
        self.graph, self.ball, self.iterations, self.optimised = graph, ball, iterations, method == "alpha-crown"
        self.method, self._name = f"auto_LiRPA {METHODS[method]}", METHODS[method]
        self.dtype = dtype or (torch.float32 if self.optimised else torch.float64)
        self._networks = [self._parsed("patches")]

    def rows(self, coefficients: Tensor, constant: Tensor | None = None) -> Bounds:
        """Bounds (N, M) of coefficients·f(x) + constant, for coefficients (N, M, K) and constant (N, M) or None."""
        ball = self.ball
        region = self.package.PerturbationLpNorm(
            norm=math.inf, x_L=ball.lower.to(self.dtype), x_U=ball.upper.to(self.dtype)
        )
        image = self.package.BoundedTensor(ball.centre.to(self.dtype), region)
        rows = coefficients.to(self.dtype)
        try:
            found = self._computed(self._networks[-1], image, rows)
        except Exception:  # its patches do not know every operation, its matrices know more
            self._networks.append(self._parsed("matrix"))
            try:
                found = self._computed(self._networks[-1], image, rows)
            except Exception as error:
                raise CannotCertify(f"auto_LiRPA failed on this network: {_first_line(error)}") from error
        lower, upper = (part.detach().double() for part in found)
        shift = 0 if constant is None else constant
        return Bounds(lower + shift, upper + shift, self.method)

    def lower_rows(self, coefficients: Tensor) -> Tensor:
        """Lower bounds (N, M) of rows (N, M, K) of the logits."""
        return self.rows(coefficients).lower

    def _computed(self, network: Any, image: Tensor, rows: Tensor) -> Sequence[Tensor]:
        gradients = contextlib.nullcontext() if self.optimised else torch.no_grad()
        with gradients, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found: Sequence[Tensor] = network.compute_bounds(x=(image,), C=rows, method=self._name)
        return found

    def _parsed(self, mode: str) -> Any:
        # The parser keeps references into the module: it gets a copy, in eval mode.
        copied = _without_normalisation(copy.deepcopy(self._module)).to("cpu", self.dtype).eval()
        example = torch.zeros_like(self.ball.centre, dtype=self.dtype)
        options: dict[str, Any] = {
            "conv_mode": mode,
            "optimize_bound_args": {"iteration": self.iterations, "lr_alpha": 0.25},
        }
        if mode == "matrix":
            sparse = ("sparse_intermediate_bounds", "sparse_conv_intermediate_bounds", "sparse_features_alpha")
            options |= dict.fromkeys((*sparse, "sparse_spec_alpha"), False)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                return self.package.BoundedModule(copied, example, bound_opts=options, device="cpu")
        except Exception as error:
            raise CannotCertify(f"auto_LiRPA does not take this network: {_first_line(error)}") from error


def _without_normalisation(module: nn.Module) -> nn.Module:
    """The same network with normalisation layers as 1×1 convolutions, which is what auto_LiRPA takes."""
    if isinstance(module, Normalise):
        channels = module.mean.numel()
        convolution = nn.Conv2d(channels, channels, 1)
        convolution.weight.data = torch.diag(1 / module.std.flatten())[:, :, None, None]
        convolution.bias = nn.Parameter(-(module.mean / module.std).flatten())
        return convolution.requires_grad_(False)
    for name, child in module.named_children():
        setattr(module, name, _without_normalisation(child))
    return module


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _mend_imports() -> None:
    if "numpy.lib.arraysetops" not in sys.modules and int(np.__version__.split(".", maxsplit=1)[0]) >= 2:
        module = types.ModuleType("numpy.lib.arraysetops")
        module.isin = np.isin  # type: ignore[attr-defined]
        sys.modules["numpy.lib.arraysetops"] = module
    helper: Any = importlib.import_module("torch.onnx.symbolic_helper")
    if not hasattr(helper, "_set_opset_version"):
        try:
            held: Any = importlib.import_module("torch.onnx._internal.torchscript_exporter._globals")
        except ImportError:
            held = importlib.import_module("torch.onnx._globals")

        def set_opset_version(version: int) -> None:
            held.GLOBALS.export_onnx_opset_version = version

        helper._set_opset_version = set_opset_version
    for opset in range(9, 21):
        for where in ("torch.onnx._internal.torchscript_exporter", "torch.onnx"):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{where}.symbolic_opset{opset}")
    node: Any = torch._C.Node
    if not hasattr(node, "__getitem__"):

        def attribute(self: Any, name: str) -> Any:
            return getattr(self, self.kindOf(name))(name)

        node.__getitem__ = attribute


def _mend_package(package: Any) -> None:
    network = package.BoundedModule
    if getattr(network, "_mended_by_certood", False):
        return

    def named_members(
        self: Any, get_members: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        seen = set()
        for where, module in self.named_modules(prefix=prefix) if recurse else [(prefix, self)]:
            for name, value in get_members(module):
                if value is None or (remove_duplicate and value in seen):
                    continue
                seen.add(value)
                full = f"{where}.{name}" if where else name
                yield self.node_name_map.get(full, full), value

    network._named_members = named_members
    activation = importlib.import_module("auto_LiRPA.operators.activation")
    for kind in vars(activation).values():
        if isinstance(kind, type) and "clip_alpha_" in vars(kind) and kind.__name__ != "BoundActivation":

            def clip(self: Any) -> None:
                for slope in self.alpha.values():
                    slope.data = slope.data.clamp(INSIDE, 1 - INSIDE)

            kind.clip_alpha_ = clip  # type: ignore[attr-defined]
    start = network.init_slope

    def init_slope(self: Any, *arguments: Any, **keywords: Any) -> Any:
        found = start(self, *arguments, **keywords)
        for part in self.relus:
            part.clip_alpha_()
        return found

    network.init_slope = init_slope
    network._mended_by_certood = True
