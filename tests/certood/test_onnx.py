"""ONNX files: what is read from them, what is refused and how, and that they are certified like other networks."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

from certood.analysis.bounds import capture
from certood.checkpoints import load, save_checkpoint
from certood.cli import main
from certood.errors import CheckpointError
from certood.onnx import read_onnx
from certood.onnx.files import read_model
from certood.onnx.witness import compare
from tests.certood.onnx_oracles import NETWORK, WEIGHTS, Idiom, random

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")


def logits(images: torch.Tensor) -> torch.Tensor:
    """The small network in torch."""
    w = {name: torch.from_numpy(value).to(images.dtype) for name, value in WEIGHTS.items()}
    hidden = F.relu(F.conv2d(images, w["w"], w["b"], 2))
    return F.linear(hidden.flatten(1), w["v"].T, w["d"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return NETWORK.write(tmp_path / "network.onnx")


def refused(model: Any, folder: Path, **options: Any) -> str:
    """The message with which a model is refused."""
    path = folder / "refused.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(CheckpointError) as error:
        read_onnx(path, **options)
    return str(error.value)


def test_a_file_says_its_shape_and_classes(file: Path) -> None:
    detector = load(file)
    assert detector.input_shape == (3, 8, 8)
    assert detector.classes == ("0", "1", "2", "3")
    assert detector.architecture == "onnx"
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(detector.model(images), logits(images))
    normalised = load(file, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    shifted = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(normalised.model(images), logits(shifted))
    double = torch.rand(5, 3, 8, 8).double()
    torch.testing.assert_close(copy.deepcopy(detector.model).double()(double), logits(double), rtol=1e-12, atol=1e-12)


def test_weights_are_parameters_and_gradients_flow(file: Path) -> None:
    network = read_onnx(file)
    assert {name: tuple(value.shape) for name, value in network.named_parameters()} == {
        "stored.w": (5, 3, 3, 3),
        "stored.b": (5,),
        "stored.v": (45, 4),
        "stored.d": (4,),
    }
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    own, expected = (torch.autograd.grad(f(images).square().sum(), images)[0] for f in (network, logits))
    torch.testing.assert_close(own, expected)


@pytest.mark.slow
def test_the_command_line_needs_only_the_file(file: Path, tmp_path: Path) -> None:
    digits = Idiom("digits", "f = Flatten (x)\n y = Gemm (f, v)", {"v": random(64, 6)}, (1, 8, 8)).write(
        tmp_path / "d.onnx"
    )
    result = CliRunner().invoke(main, ["inspect", str(file)])
    assert result.exit_code == 0, result.output
    assert "onnx: 4 classes, images 3×8×8" in result.output
    sets = ["--id", "digits", "--ood", "digits-near"]
    result = CliRunner().invoke(main, ["certify", str(digits), *sets, "--limit", "2", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "γ = " in result.output
    assert (tmp_path / "out" / "certification.json").is_file()
    result = CliRunner().invoke(main, ["evaluate", str(digits), *sets, "--out", str(tmp_path / "evaluation.json")])
    assert result.exit_code == 0, result.output


def test_what_is_given_is_checked_against_the_file(file: Path) -> None:
    assert load(file, classes=("a", "b", "c", "d"), input_shape=(3, 8, 8)).classes == ("a", "b", "c", "d")
    with pytest.raises(CheckpointError, match="gives 4 logits, but 5 classes were given"):
        load(file, classes=5)
    with pytest.raises(CheckpointError, match=r"\(N, 3, 8, 8\), which images of shape \(3, 8, 9\) do not suit"):
        load(file, input_shape=(3, 8, 9))
    with pytest.raises(CheckpointError, match=r"leave the architecture \(resnet18\) out"):
        load(file, architecture="resnet18")
    with pytest.raises(CheckpointError, match="mean and std need one value per channel"):
        load(file, mean=(0.5,), std=(0.2,))
    with pytest.raises(CheckpointError, match="stays in that file"):
        save_checkpoint(load(file), file.with_name("copy.safetensors"))


FLAT = "f = Flatten (x)\n y = Gemm (f, v)"


@pytest.mark.parametrize(
    ("declared", "given", "found", "order"),
    [
        ((1, 6, 4), None, (1, 6, 4), lambda x: x),
        ((6, 4), None, (1, 6, 4), lambda x: x),
        ((6, 4, 1), None, (1, 6, 4), lambda x: x.permute(0, 2, 3, 1)),
        ((2, 4, 3), None, (3, 2, 4), lambda x: x.permute(0, 2, 3, 1)),
        ((24,), (1, 6, 4), (1, 6, 4), lambda x: x),
        ((24,), (2, 3, 4), (2, 3, 4), lambda x: x),
        ((24, 1), (2, 3, 4), (2, 3, 4), lambda x: x),
        ((1, 24, 1), (1, 6, 4), (1, 6, 4), lambda x: x),
        ((3, 4, 2), (2, 3, 4), (2, 3, 4), lambda x: x.permute(0, 2, 3, 1)),
    ],
)
@pytest.mark.parametrize("batch", ["N", "1"])
def test_images_become_what_the_network_takes(
    declared: tuple[int, ...], given: Any, found: Any, order: Any, batch: str, tmp_path: Path
) -> None:
    weight = random(24, 5)
    path = Idiom("flat", FLAT, {"v": weight}, declared, batch=batch).write(tmp_path / "flat.onnx")
    network = read_onnx(path, input_shape=given)
    assert network.image_shape == found
    images = torch.rand(3, *found)
    torch.testing.assert_close(network(images), order(images).flatten(1) @ torch.from_numpy(weight))


def test_shapes_that_say_no_images_are_refused(tmp_path: Path) -> None:
    def message(shape: tuple[Any, ...], batch: str = "N", **options: Any) -> str:
        return refused(Idiom("flat", FLAT, {"v": random(24, 5)}, shape, batch=batch).model(), tmp_path, **options)

    assert "say of which images it is the values, with input_shape" in message((24,))
    assert "say of which images it is the values, with input_shape" in message((24, 1))
    assert "say of which images it is the values, with input_shape" in message((24,), input_shape=(1, 5, 5))
    assert "takes exactly 7 images at once" in message((1, 6, 4), "7")
    assert "images of any size" in message(("C", "H", "W"))
    sized = Idiom("flat", FLAT, {"v": random(24, 5)}, ("C", "H", "W")).write(tmp_path / "sized.onnx")
    assert read_onnx(sized, input_shape=(2, 3, 4)).image_shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("body", "opset", "message"),
    [
        ("y = Gamma (x)", 17, r"node '#0' \(Gamma, operator set 17\): there is no such operator"),
        ("y = NonZero (x)", 17, r"\(NonZero, operator set 17\): there is no such operator"),
        ("y = Relu <slope = 0.5> (x)", 17, r"attribute 'slope' = 0.5 is not known for this operator"),
        ("y = Relu (x, x)", 17, r"input 1 \('x'\) is not known for this operator"),
        ("y = Relu (z)", 17, "input 'z' is computed by no node before it"),
        ("y = Cast <to = 10> (x)", 17, "a cast to data type 10 would round"),
        ('y = Resize <mode = "cubic"> (x, , s)', 17, "mode 'cubic' .* is not supported"),
        ("y = Softmax <axis = 0> (x)", 17, "mixes the images of a batch"),
        # Closed on all images that are compared: no sample would show that the mean is one over the batch.
        ("m = ReduceMean <keepdims = 0> (x)\n c = Constant <value_float = 0.9> ()\n d = Sub (m, c)\n g = Relu (d)\n"
         " f = Flatten (x)\n y = Add (f, g)", 17, r"ReduceMean, .* mixes the images of a batch"),
        ("m = ReduceMean <axes = [0], keepdims = 1> (x)\n f = Sub (x, m)\n y = Flatten (f)", 17, "mixes the images of a"),
        ("i = Constant <value_int = 0> ()\n y = Gather <axis = 0> (x, i)", 17, "selects single images of a batch"),
        ("r = Constant <value_ints = [-1]> ()\n f = Reshape (x, r)\n n = Shape <end = 1> (x)\n a = Squeeze (n)\n"
         " z = Constant <value_int = 0> ()\n one = Constant <value_int = 1> ()\n p = Range (z, a, one)\n"
         " t = Constant <value_int = 100> ()\n i = Mul (p, t)\n y = Gather (f, i)", 17, "selects single images of a batch"),
        # Positions that grow with the square of the image's number, and numbers that grow with that of their number.
        ("r = Constant <value_ints = [-1]> ()\n f = Reshape (x, r)\n n = Shape <end = 1> (x)\n a = Squeeze (n)\n"
         " z = Constant <value_int = 0> ()\n one = Constant <value_int = 1> ()\n p = Range (z, a, one)\n q = Mul (p, p)\n"
         " t = Constant <value_int = 192> ()\n i = Mul (q, t)\n y = Gather (f, i)", 17, "has a shape that depends on the number"),
        ("n = Shape <end = 1> (x)\n q = Mul (n, n)\n r = Constant <value_ints = [-1]> ()\n m = Concat <axis = 0> (q, r)\n"
         " y = Reshape (x, m)", 17, r"input 1 \('m'\) depends on the number of images, and not linearly"),
        ("z = Constant <value_ints = [0]> ()\n o = Constant <value_ints = [1]> ()\n h = Slice (x, z, o, z)\n"
         " y = Concat <axis = 0> (h, x)", 17, "must treat images of a batch one by one, along the first axis"),
        ("i = Constant <value_ints = [0]> ()\n y = GatherND (x, i)", 17, "selects single images of a batch"),
        ("i = Constant <value_ints = [0]> ()\n y = GatherND <batch_dims = 1> (x, i)", 17, "batch_dims = 1 is not supported"),
        ('i = Constant <value_ints = [0]> ()\n y = ScatterND <reduction = "add"> (x, i, s)', 17, "reduction = 'add' is not"),
        ("i = Constant <value_ints = [1]> ()\n y = ScatterND (s, i, x)", 17, "puts parts of images into a value"),
        ("y, i = MaxPool <kernel_shape = [2, 2], storage_order = 1> (x)", 17, "storage_order = 1 is not supported"),
        ("y = Transpose (x)", 17, "must treat images of a batch one by one, along the first axis"),
        ("s = Shape (x)\n f = Cast <to = 1> (s)\n y = Mul (x, f)", 17, "cannot be evaluated"),
        ("s = Shape <end = 1> (x)\n f = Cast <to = 1> (s)\n y = Mul (x, f)", 17, "depend on the number of images"),
        ("s = Shape (x)\n y = Cast <to = 1> (s)", 17, "does not depend on the image"),
        ("r = Constant <value_ints = [-1, 7]> ()\n y = Reshape (x, r)", 17, r"does not hold the 192 values of an image"),
        ("r = Constant <value_ints = [-1, 8]> ()\n y = Reshape (x, r)", 17, "must treat images of a batch one by one"),
        ("y = Flatten <axis = 1> (x)", 6, "operator set 6 is too old"),
        ("y = BatchNormalization <training_mode = 1> (x, s, s, s, s)", 17, "training_mode = 1 is not supported"),
        ("e = Constant <value_ints = [1, 99999, 99999]> ()\n t = Constant <value_float = 1.0> ()\n"
         " k = Expand (t, e)\n m = ReduceMax (k)\n y = Add (x, m)", 17, "at most 268435456 elements are supported"),
        ("l = Log (x)\n y = Neg (l)", 17, "logits are not finite on images"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(body: str, opset: int, message: str, tmp_path: Path) -> None:
    model = Idiom(
        "refused", body, {"s": random(4)} if "(x, , s)" in body else {"s": random(3)}, (3, 8, 8), opset
    ).model()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(refused(model, tmp_path))


@pytest.mark.parametrize("order", [1, 2])
def test_a_vector_of_zeros_has_the_norm_0(order: int, tmp_path: Path) -> None:
    """Black borders: onnxruntime leaves them as they are. Bounds know the operations."""
    body = f"n = LpNormalization <axis = 2, p = {order}> (x)\n f = Flatten (n)\n y = MatMul (f, w)"
    file = Idiom("norm", body, {"w": random(64, 3)}, (1, 8, 8)).write(tmp_path / "norm.onnx")
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    image[..., 3] = 0
    onnxruntime = pytest.importorskip("onnxruntime")
    (expected,) = onnxruntime.InferenceSession(str(file)).run(None, {"x": image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(read_onnx(file)(image).numpy(), expected, atol=1e-5)
    captured = capture(read_onnx(file), image)
    np.testing.assert_allclose(captured(image.double()).numpy(), expected, atol=1e-5)


def test_other_domains_half_precision_inputs_and_outputs_are_refused(tmp_path: Path) -> None:
    model = NETWORK.model()
    model.graph.node[1].domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    assert "domain 'com.microsoft' is not one of ONNX's own" in refused(model, tmp_path)
    model = NETWORK.model()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(WEIGHTS["w"].astype(np.float16), "w"))
    assert "computes in half precision" in refused(model, tmp_path)
    model = NETWORK.model()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    assert "takes UINT8 images; expected FLOAT or DOUBLE" in refused(model, tmp_path)
    model = NETWORK.model()
    model.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, None))
    assert "returns 2 values (logits, r), expected the logits alone" in refused(model, tmp_path)
    model = NETWORK.model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 2]))
    assert "takes 2 inputs (x, z), expected images alone" in refused(model, tmp_path)


def test_functions_of_the_file_are_inlined(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    network (float[N, 3, 8, 8] x) => (float[N, K] y) { t = own.Twice (x)
        y = Flatten (t) }
    <domain: "own", opset_import: ["" : 17]>
    Twice (x) => (y) { y = Add (x, x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "functions.onnx")
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(read_onnx(tmp_path / "functions.onnx")(images), 2 * images.flatten(1))


def test_half_precision_weights_may_be_cast_first(tmp_path: Path) -> None:
    model = Idiom("half", "k = Cast <to = FLOAT> (h)\n y = Mul (x, k)", {}).model()
    half = random(3, 1, 1).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(half, "h"))
    onnx.save(model, tmp_path / "half.onnx")
    images = torch.rand(2, 3, 6, 6)
    expected = images * torch.from_numpy(half.astype(np.float32))
    torch.testing.assert_close(read_onnx(tmp_path / "half.onnx")(images), expected.flatten(1))


def test_damaged_files_are_one_error(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    assert "may be truncated" in refused(content[: len(content) // 2], tmp_path)
    assert "may be truncated" in refused(b"no protobuf at all", tmp_path)
    assert "no ONNX graph" in refused(b"", tmp_path)
    assert "called b'Fl\\xb5tten'" in refused(content.replace(b"Flatten", b"Fl\xb5tten"), tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path / "gone.onnx")
    model = NETWORK.model()
    model.graph.initializer[0].dims[0] = 2**40
    assert "needs" in refused(model, tmp_path)
    model = NETWORK.model()
    model.graph.initializer[1].data_type = onnx.TensorProto.STRING
    assert "is no array of numbers" in refused(model, tmp_path)
    model = NETWORK.model()
    model.graph.initializer[1].dims[0] = -5
    assert "'b'" in refused(model, tmp_path)


def external(folder: Path, **about: str) -> Path:
    """The small network with its weight `v` in a file beside it, which is described by `about`."""
    model = NETWORK.model()
    tensor = next(part for part in model.graph.initializer if part.name == "v")
    (folder / "weights.bin").write_bytes(b"\0" * 16 + tensor.raw_data)
    described = {"location": "weights.bin", "offset": "16", "length": str(len(tensor.raw_data))} | about
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in described.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "external.onnx").write_bytes(model.SerializeToString())
    return folder / "external.onnx"


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(read_onnx(external(tmp_path))(images), logits(images))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"location": "/etc/hostname"}, "is an absolute path"),
        ({"location": "C:\\weights.bin"}, "is an absolute path"),
        ({"location": "../weights.bin"}, "lies above the folder"),
        ({"location": "sub/../../weights.bin"}, "lies above the folder"),
        ({"location": "..\\weights.bin"}, "lies above the folder"),
        ({"location": ""}, "is not named"),
        ({"location": "missing.bin"}, "does not exist"),
        ({"location": "link.bin"}, "is or lies behind a link"),
        ({"location": "linked/weights.bin"}, "is or lies behind a link"),
        ({"offset": "17"}, "to give 720 from 17 on, and has 736"),
        ({"offset": "-1"}, "to give 720 from -1 on"),
        ({"length": "4"}, "needs 720 bytes"),
        ({"length": "many"}, "is damaged"),
    ],
)
def test_weights_elsewhere_are_refused(about: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder, **about)
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    os.symlink(folder / "weights.bin", folder / "link.bin")
    os.symlink(folder, folder / "linked")
    with pytest.raises(CheckpointError, match=message):
        read_model(path)


def test_one_part_of_a_file_does_not_serve_many_tensors(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    tensor = next(part for part in model.graph.initializer if part.name == "v")
    again = model.graph.initializer.add()
    again.CopyFrom(tensor)
    again.name = "again"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"take more bytes of weights\.bin than the 736"):
        read_model(path)


def test_a_network_that_computes_something_else_is_refused(file: Path) -> None:
    network, model = read_onnx(file), read_model(file)
    assert network.witness[0].startswith("onnx.reference: largest relative difference")
    with torch.no_grad():
        network.stored.w[0, 0, 0, 0] *= 1 + 1e-6
    with pytest.raises(CheckpointError, match=r"onnx.reference differ by .*, first at node '#0' \(Conv"):
        compare(network, model, file)
    with torch.no_grad():
        network.stored.w[0, 0, 0, 0] += 0.1
    with pytest.raises(CheckpointError, match="differ by"):
        compare(network, model, file)


def test_where_the_reference_fails_onnxruntime_decides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certood.onnx.witness._reference", lambda *_: (None, "cannot evaluate the file"))
    network, model = read_onnx(file), read_model(file)
    assert network.witness[0] == "onnx.reference: cannot evaluate the file"
    assert network.witness[1].startswith("onnxruntime: largest relative difference")
    with torch.no_grad():
        network.stored.w[0, 0, 0, 0] += 0.1
    with pytest.raises(CheckpointError, match="onnxruntime differ by"):
        compare(network, model, file)


def test_small_logits_are_compared_relative_to_themselves(tmp_path: Path) -> None:
    path = Idiom("small", "f = Flatten (x)\n y = Gemm (f, v)", {"v": random(12, 4) * 1e-5}, (3, 2, 2)).write(
        tmp_path / "small.onnx"
    )
    network, model = read_onnx(path), read_model(path)
    with torch.no_grad():
        network.stored.v *= 1 + 2**-23
    with pytest.raises(CheckpointError, match=r"onnx.reference differ by 1\.\de-07 of the largest logit, first at"):
        compare(network, model, path)


def test_large_files_are_planned_by_their_shapes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 8, 8)
    monkeypatch.setattr("certood.onnx.planning.MOST_NUMBERS", 10)
    torch.testing.assert_close(read_onnx(file)(images), logits(images))


def test_without_onnxruntime_the_reference_decides(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert read_onnx(file).witness[1] == "onnxruntime: not installed"
