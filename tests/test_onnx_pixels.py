"""Which pixels an ONNX graph is fed: what its first nodes, its metadata or the caller say."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.script import run_script

import bct
from bct.data.sets import SyntheticSet
from bct.data.views import PIXELS
from bct.errors import BctError
from bct.models.model import described, open_model
from bct.models.onnx_model import OURS, PREPROCESSING, load_onnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, TensorProto = onnx.helper, onnx.TensorProto

from support.onnx_graphs import graph, node, normalised, own_normalisation, pixels  # noqa: E402 - after the skip


@pytest.mark.parametrize("second", ["Mul", "Div"])
def test_a_graph_that_normalises_is_fed_pixels(second, tmp_path, capsys):
    images = pixels(3)
    want = (images.astype(np.float64).mean((1, 2)) - 127.5) / 100
    loaded = load_onnx(graph(tmp_path / "own.onnx", **own_normalisation(second)))
    assert "is fed RGB, pixels of 0..255" in capsys.readouterr().out
    np.testing.assert_allclose(loaded(normalised(images)), want, atol=1e-4)


@pytest.mark.parametrize("other", [None, "Sub", "Div"])
def test_a_graph_that_does_not_normalise_is_fed_what_our_networks_are(other, tmp_path, capsys):
    kw = {}
    if other:  # which changes nothing
        nodes = [helper.make_node(other, ["data", "none"], ["x"])]
        kw = {"before": nodes, "constants": {"none": np.float32(other == "Div")}}
    images = pixels(3)
    want = images.astype(np.float64).mean((1, 2)) / 127.5 - 1
    loaded = load_onnx(graph(tmp_path / "plain.onnx", **kw))
    assert "is fed RGB, (x - 127.5) / 127.5" in capsys.readouterr().out
    np.testing.assert_allclose(loaded(normalised(images)), want, atol=5e-5)


def convolved(path, nodes, constants, behind=()):
    """A file: `nodes` from "data" to "x", a convolution, `behind` nodes from "c" to "y", a mean."""
    rng = np.random.default_rng(5)
    kernel = rng.normal(size=(8, 3, 5, 5)).astype(np.float32)
    kernel -= kernel.mean((1, 2, 3), keepdims=True) / 2
    after = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[4, 4]),
        *behind,
        helper.make_node("Relu", ["y" if behind else "c"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["out"], axes=[2, 3], keepdims=0),
    ]
    constants = {"kernel": kernel, **constants}
    built = helper.make_graph(
        [*nodes, *after],
        "convolved",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 112, 112])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 8])],
        [onnx.numpy_helper.from_array(np.array(v), name) for name, v in constants.items()],
    )
    onnx.save(
        helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


F = np.float32
BEHIND = [node("Sub", "c", "one", "s"), node("Mul", "s", "half", "y")]
NUMBERS = {"one": F(1), "half": F(0.5)}
BN = ("gamma", "beta", "mean", "variance")
MEANS = F([123.7, 116.3, 103.5])
FRONTS = {  # nodes, constants, (a, b) of what they make of 0..255; None: insightface's rule
    "none": ([node("Identity", "data", "x")], {}, None),
    "behind the convolution": ([node("Identity", "data", "x")], NUMBERS, None),
    "Mul, Add": (
        [node("Mul", "data", "a", "m"), node("Add", "m", "b", "x")],
        {"a": F(1 / 128), "b": F(-127.5 / 128)},
        (1 / 128, -127.5 / 128),
    ),
    "Add, Mul, the constant first": (
        [node("Add", "b", "data", "m"), node("Mul", "a", "m", "x")],
        {"a": F(1 / 128), "b": F(-127.5)},
        (1 / 128, -127.5 / 128),
    ),
    "BatchNormalization": (
        [node("BatchNormalization", "data", *BN, "x", epsilon=0.0)],
        {
            "gamma": F([2] * 3),
            "beta": F([0.5] * 3),
            "mean": F([120] * 3),
            "variance": F([3600] * 3),
        },
        (1 / 30, 0.5 - 4),
    ),
    "per channel": (
        [node("Sub", "data", "m", "s"), node("Div", "s", "d", "x")],
        {"m": MEANS.reshape(1, 3, 1, 1), "d": F([58, 57, 57]).reshape(3, 1, 1)},
        (1 / F([58, 57, 57]), -MEANS / F([58, 57, 57])),
    ),
    "a mean image": (
        [node("Sub", "data", "m", "s"), node("Mul", "s", "a", "x")],
        {"m": np.tile(MEANS.reshape(3, 1, 1), (1, 112, 112)), "a": F(1 / 128)},
        (1 / 128, -MEANS / 128),
    ),
    "channels last": (
        [
            node("Transpose", "data", "t", perm=[0, 2, 3, 1]),
            node("Sub", "t", "m", "s"),
            node("Mul", "s", "a", "u"),
            node("Transpose", "u", "x", perm=[0, 3, 1, 2]),
        ],
        {"m": np.tile(MEANS, (112, 112, 1)), "a": F(1 / 128)},
        (1 / 128, -MEANS / 128),
    ),
    "a mean alone": ([node("Sub", "data", "m", "x")], {"m": F(127.5)}, (1, -127.5)),
    "Div by 255": ([node("Div", "data", "d", "x")], {"d": F(255)}, (1 / 255, 0)),
    "of Constants": (
        [
            helper.make_node("Constant", [], ["k"], value_float=127.5),
            node("Identity", "k", "m"),
            node("Sub", "data", "m", "s"),
            node("Mul", "s", "a", "x"),
        ],
        {"a": F(1 / 128)},
        (1 / 128, -127.5 / 128),
    ),
    "late": (
        [
            *(node("Identity", a, b) for a, b in pairwise(["data", *(f"i{k}" for k in range(9))])),
            node("Sub", "i8", "m", "s"),
            node("Transpose", "s", "t", perm=[0, 2, 3, 1]),
            node("Div", "t", "d", "u"),
            node("Transpose", "u", "x", perm=[0, 3, 1, 2]),
        ],
        {"m": F(127.5), "d": F(128)},
        (1 / 128, -127.5 / 128),
    ),
    "inverted": (
        [node("Sub", "m", "data", "s"), node("Div", "s", "d", "x")],
        {"m": F(127.5), "d": F(128)},
        (-1 / 128, 127.5 / 128),
    ),
}


@pytest.mark.parametrize("front", FRONTS)
def test_nodes_before_the_first_convolution_decide(front, tmp_path):
    nodes, constants, own = FRONTS[front]
    behind = BEHIND if "behind" in front else ()
    images = pixels(3)
    loaded = load_onnx(convolved(tmp_path / "a.onnx", nodes, constants, behind))
    got = loaded(normalised(images)).double()
    # the same convolution, fed what its front makes of the pixels
    x = images.transpose(0, 3, 1, 2).astype(np.float64)
    a, b = (np.reshape(v, (-1, 1, 1)) for v in own or (1 / 127.5, -1))
    fed = torch.from_numpy((a * x + b).astype(np.float32))
    plain = convolved(tmp_path / "b.onnx", [node("Identity", "data", "x")], NUMBERS, behind)
    want = torch.from_numpy(
        ort.InferenceSession(plain, providers=["CPUExecutionProvider"]).run(
            None, {"data": fed.numpy()}
        )[0]
    ).double()
    assert torch.cosine_similarity(got, want).min() > 1 - 1e-6
    assert (got - want).abs().max() < 1e-3 * want.abs().max()


REFUSED = {  # fronts that do not say which pixels they want, and words of the error
    "Sub 1": ([node("Sub", "data", "k", "x")], {"k": F(1)}, "1 x -1 of a pixel x"),
    "of 0..1": (
        [node("Sub", "data", "k", "s"), node("Div", "s", "k", "x")],
        {"k": F(0.5)},
        "2 x -1 of a pixel x",
    ),
    "learned over -1..1": (
        [node("BatchNormalization", "data", *BN, "x")],
        dict(zip(BN, (F([v] * 3) for v in (1, 0, 0.1, 0.3)), strict=True)),
        "of a pixel x",
    ),
    "1 on average": (
        [node("Mul", "data", "k", "x")],
        {"k": F([0.5, 1, 1.5]).reshape(3, 1, 1)},
        "0.5 x +0, 1 x +0, 1.5 x +0 of a pixel x",
    ),
    "nothing on average": (
        [node("Sub", "data", "k", "x")],
        {"k": F([-9, 0, 9]).reshape(3, 1, 1)},
        "1 x +9, 1 x +0, 1 x -9 of a pixel x",
    ),
    "Sqrt": ([node("Sqrt", "data", "x")], {}, "goes into a Sqrt"),
    "by itself": ([node("Mul", "data", "data", "x")], {}, "goes into a Mul"),
    "divided by": ([node("Div", "k", "data", "x")], {"k": F(1)}, "divided by"),
    "zero": ([node("Mul", "data", "k", "x")], {"k": F(0)}, "0 x +0 of a pixel"),
    "div by zero": ([node("Div", "data", "k", "x")], {"k": F(0)}, "of a pixel"),
    "two ways": (
        [node("Relu", "data", "p"), node("Neg", "data", "q"), node("Add", "p", "q", "x")],
        {},
        "goes into Neg, Relu",
    ),
    "of the image's mean": (
        [
            helper.make_node("Identity", ["data"], ["i"]),
            helper.make_node("ReduceMean", ["i"], ["m"], axes=[2, 3]),
            node("Sub", "i", "m", "x"),
        ],
        {},
        "goes into ReduceMean, Sub",
    ),
}


@pytest.mark.parametrize("front", REFUSED)
def test_a_front_that_does_not_say_is_refused(front, tmp_path):
    nodes, constants, words = REFUSED[front]
    path = convolved(tmp_path / "a.onnx", nodes, constants)
    with pytest.raises(BctError) as info:
        load_onnx(path)
    assert words in info.value.what and "--pixels face, imagenet, raw" in info.value.do
    images = normalised(pixels(2))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for said in ("face", "imagenet", "raw"):  # it is fed what it gets
        want = session.run(None, {"data": images.numpy()})[0]
        np.testing.assert_allclose(load_onnx(path, pixels=said)(images), want, rtol=1e-5)


def test_a_graph_that_does_not_say_can_get_bytes(tmp_path):
    path = graph(tmp_path / "a.onnx")
    images = SyntheticSet(1, 1)
    got = bct.load(path, pixels="raw").embed(images)
    np.testing.assert_allclose(got[0], images.image(0).mean((0, 1)), rtol=1e-5)  # 0..255
    said = [described({"new": bct.load(path, pixels=p)})["new"] for p in (None, "face", "raw")]
    assert [s.get("pixels") for s in said] == [None, "face", "raw"]  # results do not replace others
    with pytest.raises(BctError, match="no pixels 'bytes'"):
        bct.load(path, pixels="bytes")


@pytest.mark.parametrize("script", ["ijbc", "verification", "report", "retrieval"])
def test_every_evaluation_takes_the_flag_that_the_refusal_advises(script):
    said = run_script(f"eval/{script}.py", "--help").stdout
    assert "--pixels {" + ",".join(PIXELS) + "}" in said


def test_cached_embeddings_know_how_a_graph_was_fed(tmp_path):
    path = graph(tmp_path / "a.onnx", **own_normalisation("Mul"))
    images = SyntheticSet(1, 1)
    rows = {
        pixels: open_model(path, pixels=pixels).embed(images, tmp_path / "cache")
        for pixels in (None, "face", None)
    }
    assert np.abs(rows[None] - rows["face"]).max() > 0.5
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_metadata_hold_for_images_normalised_in_another_way(tmp_path):
    path = graph(tmp_path / "a.onnx", metadata={PREPROCESSING: json.dumps(OURS)})
    images = pixels(2)
    view = transforms(images, "imagenet")
    want = images.astype(np.float64).mean((1, 2)) / 127.5 - 1
    np.testing.assert_allclose(load_onnx(path, pixels="imagenet")(view), want, atol=5e-5)


def transforms(images, pixels):
    mean, deviation = (np.reshape(v, (3, 1, 1)) for v in PIXELS[pixels])
    x = (images.transpose(0, 3, 1, 2) - mean) / deviation
    return torch.from_numpy(x.astype(np.float32))


def test_the_metadata_says_what_the_graph_is_fed(tmp_path, capsys):
    said = {"size": 112, "colours": "BGR", "mean": 100, "std": 128}
    path = graph(
        tmp_path / "own.onnx",
        **own_normalisation("Mul"),
        metadata={PREPROCESSING: json.dumps(said)},
    )
    images = pixels(2)
    fed = (images[..., ::-1].astype(np.float64).mean((1, 2)) - 100) / 128
    np.testing.assert_allclose(load_onnx(path)(normalised(images)), (fed - 127.5) * 0.01, atol=1e-5)
    assert capsys.readouterr().out == ""  # nothing was guessed
    wrong = ({"std": 0, "colours": "RGB"}, {"mean": [1, 2]}, {"std": [1, 0, 1]}, {"mean": "x"})
    for damaged in ("BGR", "{}", "[1]", *(json.dumps(said | part) for part in wrong)):
        graph(path, metadata={PREPROCESSING: damaged})
        with pytest.raises(BctError, match=r"bct\.preprocessing can't be used"):
            load_onnx(path)
