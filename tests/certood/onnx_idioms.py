"""Idioms of ONNX: small graphs, each for one operator or one way of exporters to say something."""

from typing import Any

import numpy as np

from tests.certood.onnx_oracles import Array, Idiom


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def positive(*shape: int, seed: int = 0) -> Array:
    return np.abs(random(*shape, seed=seed)) + 0.2


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


W33, W55 = random(4, 3, 3, 3, seed=1), random(2, 3, 5, 5, seed=2)
CENTRED = "around = Sub (x, centre)\n z = Mul (around, width)\n"


def unary(name: str, attributes: str = "", opset: int = 17, **more: Any) -> Idiom:
    """An activation on values between −2 and 2."""
    return Idiom(f"{name}{attributes}@{opset}", f"{CENTRED} y = {name} {attributes} (z)", opset=opset, **more)


def on_positive(name: str) -> Idiom:
    return Idiom(name, f"q = Add (x, tenth)\n y = {name} (q)")


def pooled(kind: str, attributes: str, opset: int = 17, shape: tuple[int, ...] = (2, 7, 7), **more: Any) -> Idiom:
    return Idiom(
        f"{kind} {attributes}@{opset}", f"{CENTRED} y = {kind} <{attributes}> (z)", shape=shape, opset=opset, **more
    )


def convolved(attributes: str, weight: Array = W33, shape: tuple[int, ...] = (3, 7, 7), **more: Any) -> Idiom:
    constants = {"w": weight, "b": random(len(weight))}
    return Idiom(f"Conv {attributes}", f"y = Conv <{attributes}> (x, w, b)", constants, shape, **more)


def transposed(attributes: str, groups: int = 1, **more: Any) -> Idiom:
    weight = random(4, 3, 3, 3, seed=3)
    return Idiom(
        f"ConvTranspose {attributes}",
        f"y = ConvTranspose <{attributes}> (x, w, b)",
        {"w": weight, "b": random(3 * groups)},
        (4, 5, 5),
        **more,
    )


def reduced(kind: str, attributes: str = "axes = [2, 3]", opset: int = 12, axes: Array | None = None) -> Idiom:
    if axes is None:
        return Idiom(f"{kind} {attributes}@{opset}", f"{CENTRED} y = {kind} <{attributes}> (z)", opset=opset)
    body = f"{CENTRED} y = {kind} <{attributes}> (z, axes)" if attributes else f"{CENTRED} y = {kind} (z, axes)"
    return Idiom(f"{kind} {attributes} {axes.tolist()}@{opset}", body, {"axes": axes}, opset=opset)


def reshaped(
    name: str, shape: Array, attributes: str = "", opset: int = 17, batch: str = "N", then: str = "", **constants: Array
) -> Idiom:
    body = f"{CENTRED} y0 = Reshape {attributes} (z, shape)\n" + (then or "y = Identity (y0)")
    return Idiom(f"Reshape {name}", body, {"shape": shape, **constants}, opset=opset, batch=batch)


def resized(
    attributes: str, scales: Array | None = None, sizes: Array | None = None, opset: int = 18, **more: Any
) -> Idiom:
    inputs = "x, , scales" if sizes is None else "x, , , sizes"
    constants = {"scales": scales} if sizes is None else {"sizes": sizes}
    return Idiom(
        f"Resize {attributes} {constants}", f"y = Resize <{attributes}> ({inputs})", constants, (2, 5, 4), opset, **more
    )


def padded(mode: str, pads: Array, opset: int = 17, **more: Any) -> Idiom:
    return Idiom(
        f"Pad {mode} {pads.tolist()}@{opset}",
        f'y = Pad <mode = "{mode}"> (x, pads)',
        {"pads": pads},
        opset=opset,
        **more,
    )


def sliced(name: str, starts: Array, ends: Array, axes: Array, steps: Array) -> Idiom:
    constants = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    return Idiom(f"Slice {name}", "y = Slice (x, starts, ends, axes, steps)", constants)


ACTIVATIONS = [
    *(unary(name) for name in ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "Softplus")),
    *(
        unary(name, reference_tolerance=1e-7, because="onnx.reference goes through float32")
        for name in ("HardSwish", "Erf")
    ),
    *(
        unary(name)
        for name in ("Softsign", "Tanh", "ThresholdedRelu", "Shrink", "Abs", "Neg", "Exp", "Sign", "Floor", "Ceil")
    ),
    *(unary(name) for name in ("Round", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh")),
    *(on_positive(name) for name in ("Sqrt", "Log", "Reciprocal")),
    Idiom("Acos and Asin and Tan", "a = Acos (x)\n b = Asin (x)\n c = Tan (x)\n d = Add (a, b)\n y = Add (d, c)"),
    Idiom(
        "Atanh and Acosh", "m = Mul (x, centre)\n a = Atanh (m)\n p = Add (x, width)\n b = Acosh (p)\n y = Add (a, b)"
    ),
    unary("LeakyRelu", "<alpha = 0.3>"),
    unary("Elu", "<alpha = 0.5>"),
    unary("Selu", "<alpha = 1.5, gamma = 1.2>"),
    unary("Celu", "<alpha = 2.0>"),
    unary("HardSigmoid", "<alpha = 0.3, beta = 0.4>"),
    unary("ThresholdedRelu", "<alpha = 0.7>"),
    unary("Shrink", "<bias = 0.2, lambd = 0.6>"),
    unary("Gelu", "", 20, reference_tolerance=1e-7, because="onnx.reference goes through float32"),
    unary(
        "Gelu", '<approximate = "tanh">', 20, reference_tolerance=1e-7, because="onnx.reference goes through float32"
    ),
    unary("Mish", "", 18),
    unary("Swish", "<alpha = 1.5>", 24),
    Idiom("PRelu per channel", f"{CENTRED} y = PRelu (z, slope)", {"slope": positive(3, 1, 1)}),
    Idiom("PRelu of one slope", f"{CENTRED} y = PRelu (z, slope)", {"slope": positive(1)}),
    Idiom("PRelu per pixel", f"{CENTRED} y = PRelu (z, slope)", {"slope": random(6, 6)}),
    Idiom("Clip by attributes", f"{CENTRED} y = Clip <min = -0.5, max = 0.75> (z)", opset=10),
    Idiom("Clip by inputs", f"{CENTRED} y = Clip (z, low, high)", {"low": np.float32(-0.5), "high": np.float32(0.75)}),
    Idiom("Clip from above", f"{CENTRED} y = Clip (z, , high)", {"high": np.float32(0.75)}),
    unary("Softmax", "<axis = 1>"),
    unary("Softmax", ""),
    unary("LogSoftmax", "<axis = -2>"),
    unary(
        "Softmax",
        "<axis = 1>",
        11,
        oracles=("onnxruntime",),
        because="onnx.reference has the rule of operator set 13 alone",
    ),
    unary(
        "LogSoftmax",
        "<axis = 2>",
        9,
        oracles=("onnxruntime",),
        because="onnx.reference has the rule of operator set 13 alone",
    ),
    unary(
        "LpNormalization",
        "<axis = 1, p = 1>",
        oracles=("onnxruntime",),
        because="onnx.reference adds without absolute values",
    ),
    unary("LpNormalization", "<axis = -1>"),
    unary(
        "LRN",
        "<size = 3, alpha = 0.1, beta = 0.6, bias = 1.5>",
        oracles=("onnxruntime",),
        because="onnx.reference's region of channels is another one",
    ),
]
ARITHMETIC = [
    Idiom(
        "Add, Sub, Mul, Div with constants",
        "a = Add (x, k)\n b = Sub (k, a)\n c = Mul (b, k)\n y = Div (c, p)",
        {"k": random(3, 1, 1), "p": positive(1, 3, 1, 1)},
    ),
    Idiom("Pow by 2", f"{CENTRED} y = Pow (z, e)", {"e": np.float32(2)}),
    Idiom("Pow by an integer", f"{CENTRED} y = Pow (z, e)", {"e": np.int64(3)}),
    Idiom("Pow by a fraction", "y = Pow (x, e)", {"e": np.float32(0.7)}),
    Idiom("Pow by a tensor", "q = Add (x, tenth)\n y = Pow (q, e)", {"e": positive(3, 1, 1)}),
    Idiom(
        "Max and Min of several",
        "a = Max (x, k, l)\n b = Min (a, l)\n y = Add (a, b)",
        {"k": random(3, 1, 1), "l": positive(1, 1, 6)},
    ),
    Idiom("Sum and Mean of several", "a = Sum (x, k, x)\n y = Mean (a, x, k)", {"k": random(3, 1, 1)}),
    Idiom("product of activations", "a = Mul (x, x)\n b = Sigmoid (x)\n y = Mul (a, b)"),
    Idiom("Mod", f"{CENTRED} y = Mod <fmod = 1> (z, k)", {"k": np.float32(0.6)}),
    Idiom(
        "Where and comparisons",
        "g = Greater (x, k)\n l = LessOrEqual (x, k)\n e = Xor (g, l)\n n = Not (g)\n"
        " a = And (n, e)\n o = Or (a, g)\n w = Where (g, x, k)\n v = Where (o, w, x)\n y = Add (w, v)",
        {"k": positive(3, 1, 1) / 2},
    ),
    Idiom(
        "Where on a constant",
        "e = Equal (m, one)\n y = Where (e, x, k)",
        {"m": np.array([[0, 1, 1, 0, 1, 0]]), "one": np.int64(1), "k": random(3, 1, 1)},
    ),
    Idiom(
        "the other comparisons",
        "g = GreaterOrEqual (x, k)\n l = Less (x, k)\n n = IsNaN (x)\n a = Or (l, n)\n f = CastLike (a, x)\n"
        " y = Where (g, f, x)",
        {"k": positive(3, 1, 1) / 2},
        opset=19,
    ),
    Idiom("a factor from a size", "s = Size (w)\n f = Cast <to = FLOAT> (s)\n y = Div (x, f)", {"w": random(3, 2)}),
    Idiom("Cast to integers cuts off", f"{CENTRED} i = Cast <to = 7> (z)\n f = Cast <to = FLOAT> (i)\n y = Add (f, x)"),
    Idiom(
        "Cast to bool",
        "r = Relu (x)\n c = Floor (r)\n b = Cast <to = 9> (c)\n f = Cast <to = FLOAT> (b)\n y = Add (f, x)",
    ),
    Idiom(
        "Cast of a constant integer",
        "f = Cast <to = FLOAT> (k)\n y = Mul (x, f)",
        {"k": ints(3, 2, 5).reshape(3, 1, 1)},
    ),
    Idiom(
        "Constants in nodes",
        "a = Constant <value_floats = [0.5, 0.25, 2.0, 1.0, 0.0, 3.0]> ()\n"
        " i = Constant <value_int = 2> ()\n f = Cast <to = FLOAT> (i)\n b = Mul (x, a)\n y = Add (b, f)",
        oracles=("onnxruntime",),
        because="the attribute value_floats is float32 by the standard",
    ),
    Idiom("Identity and Dropout", "a = Identity (x)\n y = Dropout (a)"),
    Idiom("Dropout with a ratio", "y = Dropout (x, ratio)", {"ratio": np.float32(0.4)}),
    Idiom("Dropout by attribute", "y = Dropout <ratio = 0.3> (x)", opset=10),
]
WINDOWS = [
    convolved("strides = [2, 1], pads = [1, 0, 1, 0], dilations = [1, 2]"),
    convolved("pads = [0, 2, 1, 0]"),
    convolved('auto_pad = "SAME_UPPER", strides = [2, 2]'),
    convolved('auto_pad = "SAME_LOWER", strides = [2, 3]', W55),
    convolved('auto_pad = "SAME_UPPER", dilations = [2, 2]', oracles=("onnx.reference",), because="not in onnxruntime"),
    convolved('auto_pad = "VALID", kernel_shape = [3, 3]'),
    convolved("group = 3", random(6, 1, 3, 3)),
    Idiom("Conv without bias", "y = Conv (x, w)", {"w": W33}),
    convolved("pads = [2, 0]", random(4, 3, 3), (3, 9)),
    convolved("pads = [1, 1, 1, 0, 0, 0]", random(2, 3, 2, 2, 2), (3, 4, 4, 4)),
    transposed("strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]"),
    transposed("strides = [2, 2], pads = [0, 1, 1, 0]"),
    transposed("dilations = [2, 2]"),
    transposed('strides = [2, 2], auto_pad = "SAME_UPPER"'),
    transposed(
        "strides = [2, 2], output_shape = [10, 9]",
        oracles=("onnxruntime",),
        because="onnx.reference takes no spatial sizes",
    ),
    transposed(
        "group = 2, strides = [3, 3], pads = [1, 1, 1, 1]", 2, oracles=("onnxruntime",), because="onnx.reference fails"
    ),
    *(
        pooled(kind, attributes)
        for kind in ("MaxPool", "AveragePool")
        for attributes in (
            "kernel_shape = [2, 2], strides = [2, 2]",
            "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]",
            "kernel_shape = [3, 3], strides = [2, 2], pads = [0, 1, 1, 0]",
            "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1",
            "kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 0], ceil_mode = 1",
            "kernel_shape = [2, 2], strides = [4, 4], pads = [0, 0, 1, 1], ceil_mode = 1",
            'kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"',
            'kernel_shape = [2, 2], strides = [1, 1], auto_pad = "SAME_LOWER"',
        )
    ),
    pooled("MaxPool", "kernel_shape = [2, 2], dilations = [2, 2]"),
    pooled("MaxPool", "kernel_shape = [3], strides = [2], pads = [2, 0]", shape=(2, 9)),
    pooled("AveragePool", "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1"),
    pooled("AveragePool", "kernel_shape = [3, 3], strides = [2, 2], pads = [0, 1, 2, 0], count_include_pad = 1"),
    pooled(
        "AveragePool",
        "kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 0, 0], ceil_mode = 1, count_include_pad = 1",
        19,
    ),
    pooled("AveragePool", "kernel_shape = [2, 2], dilations = [2, 1], strides = [1, 2]", 19),
    pooled("AveragePool", "kernel_shape = [2, 2, 2]", shape=(2, 4, 4, 4)),
    Idiom(
        "GlobalAveragePool and GlobalMaxPool",
        "a = GlobalAveragePool (x)\n b = GlobalMaxPool (x)\n y = Concat <axis = 1> (a, b)",
    ),
]
NORMALISATIONS = [
    Idiom(
        "BatchNormalization",
        "y = BatchNormalization <epsilon = 0.01> (x, s, b, m, v)",
        {"s": random(3), "b": random(3, seed=1), "m": random(3, seed=2), "v": positive(3)},
    ),
    Idiom(
        "BatchNormalization@9",
        "y = BatchNormalization <momentum = 0.8> (x, s, b, m, v)",
        {"s": random(3), "b": random(3, seed=1), "m": random(3, seed=2), "v": positive(3)},
        opset=9,
        oracles=("onnxruntime",),
        because="onnx.reference mixes statistics of the batch in",
    ),
    Idiom(
        "InstanceNormalization",
        "y = InstanceNormalization <epsilon = 0.1> (x, s, b)",
        {"s": random(3), "b": random(3, seed=1)},
    ),
    Idiom("LayerNormalization", "y = LayerNormalization (x, s, b)", {"s": random(6), "b": random(6, seed=1)}),
    Idiom(
        "LayerNormalization over axes", "y = LayerNormalization <axis = 2, epsilon = 0.01> (x, s)", {"s": random(6, 6)}
    ),
    Idiom(
        "GroupNormalization@18",
        "y = GroupNormalization <num_groups = 2> (x, s, b)",
        {"s": random(2), "b": random(2, seed=1)},
        (4, 5, 5),
        18,
    ),
    Idiom(
        "GroupNormalization@21",
        "y = GroupNormalization <num_groups = 2, epsilon = 0.01, stash_type = FLOAT> (x, s, b)",
        {"s": random(4), "b": random(4, seed=1)},
        (4, 5, 5),
        21,
    ),
    Idiom(
        "GroupNormalization@21 of more values",
        "y = GroupNormalization <num_groups = 2> (x, s, b)",
        {"s": random(4), "b": random(4, seed=1)},
        (4, 7, 7),
        21,
        oracles=("onnxruntime",),
        because="onnx.reference rounds its statistics to float32 (stash_type), which the witness leaves out",
    ),
    Idiom("RMSNormalization", "y = RMSNormalization (x, s)", {"s": random(6)}, opset=23),
    Idiom(
        "MeanVarianceNormalization",
        "y = MeanVarianceNormalization <axes = [2, 3]> (x)",
        oracles=("onnxruntime",),
        because="its definition by other operators has constants in float32",
    ),
]
PRODUCTS = [
    Idiom("Gemm", "f = Flatten (x)\n y = Gemm (f, w, b)", {"w": random(108, 5), "b": random(5)}),
    Idiom(
        "Gemm scaled and transposed",
        "f = Flatten (x)\n y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (f, w, b)",
        {"w": random(5, 108), "b": random(1, 5)},
    ),
    Idiom(
        "Gemm with a transposed factor",
        "f = Flatten (x)\n t = Transpose (f)\n y = Gemm <transA = 1, transB = 1> (t, w)",
        {"w": random(5, 108)},
    ),
    Idiom("Gemm with a scalar", "f = Flatten (x)\n y = Gemm (f, w, b)", {"w": random(108, 5), "b": np.float32(0.3)}),
    Idiom("MatMul by a matrix", "y = MatMul (x, w)", {"w": random(6, 4)}),
    Idiom("MatMul from the left", "y = MatMul (w, x)", {"w": random(4, 6)}),
    Idiom("MatMul by a batch of matrices", "y = MatMul (x, w)", {"w": random(3, 6, 4)}),
    Idiom("MatMul of activations", "t = Transpose <perm = [0, 1, 3, 2]> (x)\n y = MatMul (x, t)"),
    Idiom("Einsum", 'y = Einsum <equation = "nchw, cd -> ndhw"> (x, w)', {"w": random(3, 4)}),
    Idiom("Einsum of activations", 'y = Einsum <equation = "nchw,ncvw->nhv"> (x, x)'),
]
REDUCTIONS = [
    *(reduced(f"Reduce{kind}") for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")),
    reduced("ReduceMean", "axes = [-1], keepdims = 0"),
    reduced("ReduceMean", "keepdims = 0", 18, ints(2, 3)),
    reduced("ReduceMax", "", 18, ints(1)),
    reduced("ReduceSum", "keepdims = 0", 13, ints(-1, 1)),
    reduced("ReduceSum", "noop_with_empty_axes = 1", 13, ints()),
    reduced("ReduceL2", "", 18, ints(1)),
    Idiom(
        "ReduceMax without the axis",
        "m = ReduceMax <axes = [2], keepdims = 0> (x)\n y = Add (m, k)",
        {"k": random(3, 1)},
    ),
    Idiom("ReduceLogSum", "q = Add (x, tenth)\n y = ReduceLogSum <axes = [1]> (q)"),
]
RESHAPES = [
    reshaped("with -1", ints(-1, 9, 12)),
    reshaped("with 0", ints(0, -1)),
    reshaped("with 0 in the middle", ints(0, 0, 36)),
    reshaped("with 0 and -1 for the images", ints(-1, 0, 6, 6)),
    reshaped("with allowzero", ints(-1, 108), "<allowzero = 1>"),
    reshaped("of one image", ints(1, 9, 12), batch="1"),
    reshaped("of one image with -1", ints(1, -1), batch="1"),
    reshaped("of one image with -1 first", ints(-1, 9, 12), batch="1"),
    reshaped(
        "of one image to heads and back",
        ints(1, 3, 2, 3, 6),
        batch="1",
        then="t = Transpose <perm = [0, 2, 3, 1, 4]> (y0)\n back = Constant <value_ints = [2, 3, 18]> ()\n"
        " u = Reshape (t, back)\n v = Softmax <axis = -1> (u)\n"
        " again = Constant <value_ints = [1, 2, 54]> ()\n y = Reshape (v, again)",
    ),
    *(
        reshaped(
            f"of one image in the middle {rows.tolist()}",
            ints(1, 9, 12),
            batch="1",
            then="t = Transpose <perm = [1, 0, 2]> (y0)\n rows = Identity (merged)\n r = Reshape (t, rows)\n"
            " m = Softmax <axis = -1> (r)\n u = Relu (m)\n back = Constant <value_ints = [9, 1, 12]> ()\n"
            " b = Reshape (u, back)\n y = Transpose <perm = [1, 0, 2]> (b)",
            merged=rows,
        )
        for rows in (ints(9, 12), ints(-1, 12), ints(9, 3, 4))
    ),
    reshaped(
        "merging the images",
        ints(-1, 12),
        then="m = Softmax <axis = -1> (y0)\n back = Constant <value_ints = [-1, 9, 12]> ()\n y = Reshape (m, back)",
    ),
    Idiom(
        "Reshape computed from shapes",
        "s = Shape (x)\n i = Constant <value_int = 0> ()\n n = Gather <axis = 0> (s, i)\n"
        " a = Constant <value_ints = [0]> ()\n u = Unsqueeze (n, a)\n m = Constant <value_ints = [-1]> ()\n"
        " t = Concat <axis = 0> (u, m)\n y = Reshape (x, t)",
    ),
    Idiom(
        "Reshape by a slice of a shape",
        "s = Shape (x)\n a = Constant <value_ints = [0]> ()\n e = Constant <value_ints = [2]> ()\n"
        " h = Slice (s, a, e)\n m = Constant <value_ints = [-1]> ()\n t = Concat <axis = 0> (h, m)\n y = Reshape (x, t)",
    ),
    Idiom(
        "Reshape by Shape from start to end",
        "s = Shape <start = 0, end = 1> (x)\n m = Constant <value_ints = [108]> ()\n"
        " t = Concat <axis = 0> (s, m)\n y = Reshape (x, t)",
    ),
    Idiom(
        "Reshape by arithmetic on shapes",
        "s = Shape (x)\n i = Constant <value_ints = [1, 2]> ()\n g = Gather (s, i)\n"
        " p = ReduceProd <keepdims = 1> (g)\n two = Constant <value_int = 2> ()\n d = Div (p, two)\n"
        " n = Shape <end = 1> (x)\n m = Constant <value_ints = [-1]> ()\n t = Concat <axis = 0> (n, d, m)\n y = Reshape (x, t)",
    ),
    Idiom(
        "a factor from a shape", "s = Shape <start = 3> (x)\n f = Cast <to = FLOAT> (s)\n r = Sqrt (f)\n y = Div (x, r)"
    ),
    Idiom("Flatten", "y = Flatten <axis = 2> (x)", shape=(1, 6, 6)),
    Idiom("Flatten by a negative axis", "y = Flatten <axis = -3> (x)"),
    Idiom("Transpose", "y = Transpose <perm = [0, 2, 3, 1]> (x)"),
    Idiom("Transpose through the images", "t = Transpose (x)\n s = Softmax <axis = 0> (t)\n y = Transpose (s)"),
    Idiom(
        "Squeeze and Unsqueeze by attributes",
        "u = Unsqueeze <axes = [1, 5]> (x)\n y = Squeeze <axes = [1]> (u)",
        opset=11,
    ),
    Idiom(
        "Squeeze and Unsqueeze by inputs", "u = Unsqueeze (x, a)\n y = Squeeze (u, b)", {"a": ints(-1, 2), "b": ints(2)}
    ),
    Idiom("Squeeze of all", "m = ReduceMean <axes = [2, 3]> (x)\n y = Squeeze (m)"),
    Idiom(
        "Expand", "m = ReduceMean <axes = [2]> (x)\n s = Constant <value_ints = [1, 3, 4, 6]> ()\n y = Expand (m, s)"
    ),
    Idiom(
        "Expand to the images",
        "s = Shape <end = 1> (x)\n m = Constant <value_ints = [2, 36]> ()\n t = Concat <axis = 0> (s, m)\n"
        " c = Expand (token, t)\n r = Constant <value_ints = [0, 3, 36]> ()\n f = Reshape (x, r)\n"
        " y = Concat <axis = 1> (c, f)",
        {"token": random(1, 2, 36)},
    ),
    Idiom(
        "a constant for one image joined",
        "r = Constant <value_ints = [1, 3, 36]> ()\n f = Reshape (x, r)\n y = Concat <axis = 1> (token, f)",
        {"token": random(1, 2, 36)},
        batch="1",
    ),
    Idiom(
        "ConstantOfShape by the shape of images",
        "s = Shape (x)\n c = ConstantOfShape <value = float[1] {0.5}> (s)\n k = Cast <to = FLOAT> (c)\n y = Add (x, k)",
    ),
    Idiom("Tile", "y = Tile (x, r)", {"r": ints(1, 2, 1, 3)}),
    Idiom("Concat with the input", "r = Relu (x)\n n = Neg (x)\n y = Concat <axis = -3> (r, x, n)"),
    Idiom("Split in equal parts", "a, b, c = Split <axis = 1> (x)\n d = Mul (a, b)\n y = Add (d, c)"),
    Idiom("Split by sizes", "a, b = Split <axis = 2> (x, s)\n y = Concat <axis = 2> (b, a)", {"s": ints(2, 4)}),
    Idiom("Split by attribute", "a, b = Split <axis = 3, split = [1, 5]> (x)\n y = Concat <axis = 3> (b, a)", opset=11),
    Idiom(
        "Split with a smaller last part",
        "a, b = Split <axis = 3, num_outputs = 2> (x)\n y = Concat <axis = 3> (b, a)",
        shape=(2, 3, 5),
        opset=18,
    ),
    Idiom("DepthToSpace DCR", "y = DepthToSpace <blocksize = 2> (x)", shape=(8, 3, 2)),
    Idiom("DepthToSpace CRD", 'y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', shape=(8, 3, 2)),
    Idiom("SpaceToDepth", "y = SpaceToDepth <blocksize = 3> (x)"),
    Idiom("Trilu", "a = Trilu (x)\n b = Trilu <upper = 0> (x, k)\n y = Add (a, b)", {"k": np.int64(-1)}),
    Idiom(
        "Range and EyeLike",
        "a = Range (zero, six, one)\n f = Cast <to = FLOAT> (a)\n m = MatMul (x, s)\n"
        " e = EyeLike <dtype = FLOAT, k = 1> (s)\n n = MatMul (m, e)\n y = Add (n, f)",
        {"zero": np.int64(0), "six": np.int64(6), "one": np.int64(1), "s": random(6, 6)},
    ),
]
POSITIONS = [
    sliced("by steps", ints(1, 0), ints(100, -1), ints(2, -1), ints(2, 1)),
    sliced("backwards", ints(-1, 4), ints(-(2**40), 0), ints(2, 3), ints(-1, -2)),
    sliced("of all images", ints(0, 1), ints(2**62, 3), ints(0, 1), ints(1, 1)),
    sliced("from the first of all to before one", ints(-(2**63)), ints(-2), ints(2), ints(1)),
    Idiom("Slice by attributes", "y = Slice <starts = [1, -4], ends = [3, 2147483647], axes = [1, 2]> (x)", opset=9),
    Idiom("Gather one", "y = Gather <axis = 1> (x, i)", {"i": np.int64(-1)}),
    Idiom("Gather several", "y = Gather <axis = 2> (x, i)", {"i": ints(3, 0, -2, 3)}),
    Idiom("Gather a matrix of positions", "y = Gather <axis = -1> (x, i)", {"i": ints(1, 0, 5, 2).reshape(2, 2)}),
    Idiom(
        "GatherElements",
        "s = Shape (x)\n k = Expand (i, s)\n y = GatherElements <axis = 3> (x, k)",
        {"i": ints(1, 0, 5, -2, 3, 3)},
    ),
    Idiom(
        "Gather from the values of each image",
        "f = Reshape (x, all)\n n = Shape <end = 1> (x)\n z = Constant <value_int = 0> ()\n a = Squeeze (n)\n"
        " one = Constant <value_int = 1> ()\n r = Range (z, a, one)\n s = Constant <value_int = 108> ()\n"
        " o = Mul (r, s)\n u = Unsqueeze (o, axes)\n i = Add (u, k)\n y = Gather (f, i)",
        {"all": ints(-1), "axes": ints(1, 2), "k": ints(5, 3, 107, 0, 9, 9).reshape(1, 2, 3)},
    ),
    Idiom(
        "Gather from the values of one image",
        "f = Reshape (x, all)\n y = Gather (f, k)",
        {"all": ints(-1), "k": ints(5, 3, 107, 0, 9, 9).reshape(1, 2, 3)},
        batch="1",
    ),
    Idiom(
        "GatherND",
        "t = Transpose <perm = [1, 2, 0, 3]> (x)\n g = GatherND (t, i)\n y = Transpose <perm = [1, 0, 2]> (g)",
        {"i": ints(0, 1, 2, 5, -1, 0).reshape(3, 2)},
    ),
    Idiom(
        "ScatterND into a constant",
        "m = ScatterND (zeros, i, v)\n y = Add (x, m)",
        {"zeros": np.zeros((6, 6)), "i": ints(0, 1, 2, 5, 4, 0).reshape(3, 2), "v": random(3)},
    ),
    Idiom(
        "ScatterND into the rows of images",
        "t = Transpose <perm = [1, 0, 2, 3]> (x)\n r = Relu (t)\n p = Slice (r, a, b)\n m = ScatterND (t, i, p)\n"
        " y = Transpose <perm = [1, 0, 2, 3]> (m)",
        {"a": ints(0), "b": ints(2), "i": ints(2, 0).reshape(2, 1)},
    ),
    padded("constant", ints(0, 0, 1, 2, 0, 0, 0, 1)),
    padded("constant", ints(0, 1, 0, 0, 0, 2, 0, 0)),
    padded(
        "constant", ints(0, 0, -1, 0, 0, 0, 1, -2), oracles=("onnxruntime",), because="NumPy pads by no negative sizes"
    ),
    padded("reflect", ints(0, 0, 1, 2, 0, 0, 3, 1)),
    padded("edge", ints(0, 0, 1, 2, 0, 0, 3, 1)),
    padded("wrap", ints(0, 0, 1, 2, 0, 0, 3, 1), 19),
    Idiom("Pad with a value", "y = Pad (x, p, v)", {"p": ints(0, 0, 1, 0, 0, 0, 0, 2), "v": np.float32(0.7)}),
    Idiom("Pad of axes", "y = Pad (x, p, v, a)", {"p": ints(1, 2), "v": np.float32(0), "a": ints(-1)}, opset=18),
    Idiom(
        "Pad by attributes", 'y = Pad <mode = "constant", pads = [0, 0, 1, 1, 0, 0, 0, 2], value = 0.3> (x)', opset=10
    ),
]
RESIZES = [
    resized(
        'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        np.array([1, 1, 2, 3.0]),
    ),
    resized('mode = "nearest"', np.array([1, 1, 2, 2.0])),
    resized('mode = "nearest", nearest_mode = "ceil"', sizes=ints(1, 2, 7, 3)),
    resized('mode = "linear"', np.array([1, 1, 2, 2.0])),
    resized('mode = "linear", coordinate_transformation_mode = "align_corners"', np.array([1, 1, 2, 2.0])),
    resized('mode = "linear", coordinate_transformation_mode = "asymmetric"', np.array([1, 1, 2, 2.0])),
    resized('mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"', sizes=ints(1, 2, 3, 7)),
    Idiom(
        "Resize to computed sizes",
        "s = Shape <end = 2> (x)\n h = Constant <value_ints = [10, 8]> ()\n"
        " t = Concat <axis = 0> (s, h)\n"
        ' y = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (x, , , t)',
        shape=(2, 5, 4),
    ),
    Idiom("Upsample@9", 'y = Upsample <mode = "nearest"> (x, scales)', {"scales": np.array([1, 1, 2, 2.0])}, opset=9),
    Idiom(
        "Resize@10",
        'y = Resize <mode = "nearest"> (x, scales)',
        {"scales": np.array([1, 1, 2, 2.0])},
        opset=10,
        oracles=("onnxruntime",),
        because="onnx.reference knows Resize from operator set 11 on",
    ),
]
IDIOMS = [
    *ACTIVATIONS,
    *ARITHMETIC,
    *WINDOWS,
    *NORMALISATIONS,
    *PRODUCTS,
    *REDUCTIONS,
    *RESHAPES,
    *POSITIONS,
    *RESIZES,
]
