"""Operations of a captured network: each knows its value, its bounds, its norm and its derivative."""

from certood.analysis.bounds.operations.activations import Activation
from certood.analysis.bounds.operations.affine import ChannelAffine, ScaledSum
from certood.analysis.bounds.operations.axis import AxisFunction, LogSoftmax, LogSumExp, Maximum, Softmax
from certood.analysis.bounds.operations.base import (
    Elementwise,
    Input,
    Interval,
    JointRelaxation,
    LinearOperation,
    Nonlinear,
    Operation,
    Rows,
    in_precision,
)
from certood.analysis.bounds.operations.convolution import Convolution, TransposedConvolution
from certood.analysis.bounds.operations.gates import Gate
from certood.analysis.bounds.operations.linear import Linear
from certood.analysis.bounds.operations.max_pool import MaxPool
from certood.analysis.bounds.operations.monotone import Monotone, Reshape
from certood.analysis.bounds.operations.product import Product
from certood.analysis.bounds.operations.relaxations import Relaxation
from certood.analysis.bounds.operations.sums import Concatenation, WeightedSum

__all__ = [
    "Activation",
    "AxisFunction",
    "ChannelAffine",
    "Concatenation",
    "Convolution",
    "Elementwise",
    "Gate",
    "Input",
    "Interval",
    "JointRelaxation",
    "Linear",
    "LinearOperation",
    "LogSoftmax",
    "LogSumExp",
    "MaxPool",
    "Maximum",
    "Monotone",
    "Nonlinear",
    "Operation",
    "Product",
    "Relaxation",
    "Reshape",
    "Rows",
    "ScaledSum",
    "Softmax",
    "TransposedConvolution",
    "WeightedSum",
    "in_precision",
]
