"""ONNX files, exported and of others, and stored embeddings in the place of a network."""

import json
import resource
import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.script import run_script
from torch import nn

import bct
from backbones import NETWORKS, get_model
from bct.data.sets import SyntheticSet
from bct.data.views import PIXELS
from bct.errors import BctError
from bct.files import sha256_file, write_json
from bct.models.model import described, open_model
from bct.models.onnx_model import OURS, PREPROCESSING, WEIGHTS_FILE, load_onnx
from bct.models.onnx_probe import probe
from bct.models.weights import load_backbone
from tools import export_onnx
from tools.export_onnx import check, export

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, TensorProto = onnx.helper, onnx.TensorProto

TWO_FILES = ("vit_h", "r2060")  # weights of more than one file holds
QUICK = ("demo_w16",)
SLOW = ("mbf", "r50", "vit_t", "vit_s_dp005_mask_0")  # of each family; `make faults` has the rest


def trained(name: str, size: int = 32) -> nn.Module:
    """A network whose running statistics are those of a batch, as after training."""
    torch.manual_seed(0)
    model = get_model(name, size).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over batches: of the only one
    with torch.no_grad():
        model(torch.rand(4, 3, 112, 112) * 2 - 1)
    return model  # still in training mode


def compare(model, loaded):
    for batch in (1, 7):
        images = torch.rand(batch, 3, 112, 112) * 2 - 1
        with torch.inference_mode():
            want, got = model(images), loaded(images)
        assert got.dtype == torch.float32 and got.shape == want.shape
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()


# ---- export


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=() if name in QUICK else pytest.mark.slow if name in SLOW else pytest.mark.faults,
        )
        for name in NETWORKS
        if name != "r2060"  # 8 minutes and 19 GiB: `python -m benchmarks.export` does it
    ],
)
def test_an_exported_network_equals_torch(name, tmp_path):
    model = trained(name)
    opset = export(model, tmp_path / "model.onnx", {"bct.network": name})
    assert not model.training
    compare(model, load_onnx(tmp_path / "model.onnx"))

    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"model.onnx"} | ({"model.onnx.data"} if name in TWO_FILES else set())
    assert graph.opset_import[0].version == opset
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (data,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (data.name, data.shape) == ("data", ["batch", 3, 112, 112])
    assert (embedding.name, embedding.shape) == ("embedding", ["batch", 32])
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    want = {"size": 112, "colours": "RGB", "mean": 127.5, "std": 127.5}
    assert json.loads(metadata.pop(PREPROCESSING)) == want
    assert metadata.keys() - {WEIGHTS_FILE} == {"bct.network"}
    assert (WEIGHTS_FILE in metadata) == (name in TWO_FILES)
    kinds = {node.op_type for node in graph.graph.node}
    assert not any("Random" in kind or kind == "Dropout" for kind in kinds)
    if not name.startswith("vit"):  # the inference PReLU, not the one that trains fast
        assert "PRelu" in kinds and "Transpose" not in kinds
    assert b"stack_trace" not in (tmp_path / "model.onnx").read_bytes()


def test_large_weights_are_in_a_file_beside_it(tmp_path):
    model = trained("demo_w32")
    path, weights = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    export(model, path, {}, largest=1 << 10)
    assert path.stat().st_size < 0.3 * weights.stat().st_size
    compare(model, load_onnx(path))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(BctError, match="is missing or another model's"):
        load_onnx(shutil.copy(path, tmp_path / "elsewhere" / "model.onnx"))
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BctError, match="is missing or another model's"):
        load_onnx(path)


def test_a_file_that_differs_from_the_network_is_noticed(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 9, stride=8), nn.Flatten(), nn.Linear(8 * 13 * 13, 8))
    path = tmp_path / "model.onnx"
    export(model, path, {})
    assert check(model, path) <= 2e-5
    bias = model[2].bias.data
    with torch.no_grad():
        scale = model(2 * torch.rand(8, 3, 112, 112) - 1).abs().max()
    bias += 0.001 * scale
    with pytest.raises(BctError, match="differs from torch by"):
        check(model, path)
    bias.fill_(torch.nan)
    with pytest.raises(BctError, match="differs from torch by nan"):
        check(model, path)


def test_the_tool(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_onnx.py", *map(str, arguments)])
        export_onnx.main()
        return capsys.readouterr().out

    model = trained("demo_w32").eval()
    weights, path = tmp_path / "model.pt", tmp_path / "sub" / "new.onnx"
    torch.save(model.state_dict(), weights)
    write_json(tmp_path / "model.json", {"network": "demo_w32"})
    said = run(weights, "-o", path, "--opset", "18")
    assert "demo_w32" in said and "opset 18" in said
    assert [p.name for p in path.parent.iterdir()] == ["new.onnx"]
    written = onnx.load(path)
    assert written.opset_import[0].version == 18
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    del metadata[PREPROCESSING]
    assert metadata == {
        "bct.network": "demo_w32",
        "bct.embedding_size": "32",
        "bct.weights_sha256": sha256_file(weights),
    }
    loaded = load_backbone(path, amp_dtype=torch.bfloat16)  # which it can't obey
    assert not loaded.training and loaded.embedding_size == 32
    compare(model, loaded)
    compare(model, load_backbone(path, "demo_w32"))
    with pytest.raises(BctError, match="is network demo_w32, not r50"):
        load_backbone(path, "r50")

    before = path.read_bytes()
    for arguments, words in (
        ((weights, "-o", path), "exists already"),
        ((weights, "--opset", "11"), "below 18"),
        ((weights, "--opset", "99"), "torch wrote opset"),
        ((path,), "is an ONNX file"),
        ((tmp_path / "none.pt",), "do not exist"),
        ((weights, "-net", "r18"), "does not fit network r18"),
    ):
        with pytest.raises(BctError, match=words):
            run(*arguments)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "model.json", "sub"}
    run(weights, "-o", path, "--overwrite")
    assert path.read_bytes() != before


# ---- graphs of others


def graph(path, *, before=(), batch="N", shape=(3, 112, 112), output=None, after=(), more=(), **kw):
    """A tiny file: `before` nodes from "data" to "x", the mean over each channel of x, `after`
    nodes from "mean" to "out". Without `before` and `after` the output is the mean, (B, 3)."""
    kind = kw.get("kind", TensorProto.FLOAT)
    kind_out = kw.get("kind_out", kind)
    last = "out" if after else "mean"
    nodes = [
        *(before or [helper.make_node("Identity", ["data"], ["x"])]),
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        *after,
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(value), name)
        for name, value in kw.get("constants", {}).items()
    ]
    built = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("data", kind, [batch, *shape])],
        [helper.make_tensor_value_info(n, kind_out, output) for n in (last, *more)],
        constants,
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, kw.get("metadata", {}))
    onnx.save(model, path)
    return path


def pixels(batch: int) -> np.ndarray:
    """uint8 (B, 112, 112, 3) whose colours have different means."""
    noise = np.random.default_rng(batch).integers(0, 90, (batch, 112, 112, 3))
    return (noise + np.array([0, 60, 160])).astype(np.uint8)


def normalised(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32))


def own_normalisation(second: str) -> dict:
    """Nodes that subtract 127.5 and multiply with or divide by 100."""
    factor = np.float32(100 if second == "Div" else 0.01)
    nodes = [
        helper.make_node("Sub", ["data", "shift"], ["centred"]),
        helper.make_node(second, ["centred", "factor"], ["x"]),
    ]
    return {"before": nodes, "constants": {"shift": np.float32(127.5), "factor": factor}}


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


def node(kind, *names, **attributes):
    return helper.make_node(kind, names[:-1], names[-1:], **attributes)


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


# ---- graphs that never end, take all memory, or bring onnxruntime down


def endless():
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Sin", "v", "w")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    return [helper.make_node("Loop", ["", "yes", "mean"], ["out"], body=body)], {"yes": True}


def huge():
    nodes = [
        node("ConstantOfShape", "shape", "z"),
        node("ReduceMax", "z", "m", keepdims=0),
        node("Add", "mean", "m", "out"),
    ]
    return nodes, {"shape": np.int64([1 << 17, 1 << 17])}


@pytest.mark.parametrize(("make", "seconds"), [(endless, 2), (huge, 20)])
def test_graphs_without_bounds_are_refused(make, seconds, tmp_path):
    after, constants = make()
    path = graph(tmp_path / "a.onnx", after=after, constants=constants)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BctError) as info:
        found = probe(path, 112, seconds)
        raise BctError(found["problem"] if "problem" in found else found["unreadable"], "-")
    assert len(str(info.value).splitlines()) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # 128 MiB


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
    for damaged in ("BGR", "{}", "[1]", json.dumps(said | {"std": 0, "colours": "RGB"})):
        graph(path, metadata={PREPROCESSING: damaged})
        with pytest.raises(BctError, match=r"bct\.preprocessing can't be used"):
            load_onnx(path)


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("batch", [1, 3, "N", None])
def test_fixed_batches(batch, count, tmp_path):
    loaded = load_onnx(graph(tmp_path / "fixed.onnx", batch=batch))
    images = pixels(count)
    want = images.astype(np.float64).mean((1, 2)) / 127.5 - 1
    got = loaded(normalised(images).contiguous(memory_format=torch.channels_last))
    np.testing.assert_allclose(got, want, atol=5e-5)
    assert loaded.batch == (batch if isinstance(batch, int) else None)


@pytest.mark.parametrize("target", [[1, -1], [1, 3]])
def test_a_constant_that_fixes_the_batch_inside(target, tmp_path):
    after = [helper.make_node("Reshape", ["mean", "target"], ["out"])]
    constants = {"target": np.array(target)}
    path = graph(tmp_path / "inside.onnx", after=after, constants=constants)
    images = pixels(5)
    want = images.astype(np.float64).mean((1, 2)) / 127.5 - 1
    loaded = load_onnx(path)
    assert (loaded.batch, loaded.embedding_size) == (1, 3)
    np.testing.assert_allclose(loaded(normalised(images)), want, atol=5e-5)


def test_half_precision(tmp_path):
    loaded = load_onnx(graph(tmp_path / "half.onnx", kind=TensorProto.FLOAT16))
    got = loaded(torch.full((2, 3, 112, 112), 0.5))
    assert got.dtype == torch.float32 and (got == 0.5).all()


def test_a_declared_output_of_one_image_does_not_matter(tmp_path, capfd):
    loaded = load_onnx(graph(tmp_path / "one.onnx", output=[1, 3]))
    assert loaded(torch.zeros(4, 3, 112, 112)).shape == (4, 3)
    assert capfd.readouterr().err == ""


def test_graphs_that_do_not_fit(tmp_path):
    path = tmp_path / "model.onnx"
    squeeze = {
        "after": [helper.make_node("Reshape", ["mean", "target"], ["out"])],
        "constants": {"target": np.array([-1])},
    }
    spatial = [helper.make_node("Unsqueeze", ["mean", "axis"], ["out"])]
    to_int = [helper.make_node("Cast", ["mean"], ["out"], to=TensorProto.INT64)]
    from_byte = [helper.make_node("Cast", ["data"], ["x"], to=TensorProto.FLOAT)]
    byte = {"before": from_byte, "kind": TensorProto.UINT8, "kind_out": TensorProto.FLOAT}
    for kw, words in (
        ({"shape": (3, 224, 224)}, "expects 3x224x224, the images are 3x112x112"),
        ({"shape": (1, 112, 112)}, "expects 1x112x112, the images are 3x112x112"),
        ({"shape": (112, 112, 3)}, "expects 112x112x3, the images are 3x112x112"),
        ({"shape": (3, 112)}, "expects Nx3x112, the images are 3x112x112"),
        ({"more": ["pooled"]}, "has 2 outputs (mean, pooled), not one"),
        (byte, "its input data is a tensor(uint8), not of floats"),
        ({"after": to_int, "kind_out": TensorProto.INT64}, "its output out is a tensor(int64)"),
        (squeeze, "does not give one embedding per image (1 images give 3)"),
        ({"after": spatial, "constants": {"axis": np.array([2])}}, "1 images give 1x3x1"),
    ):
        graph(path, **kw)
        with pytest.raises(BctError) as info:
            load_onnx(path)
        assert words in str(info.value), str(info.value)
    metadata = {PREPROCESSING: '{"size": 128, "colours": "RGB", "mean": 0, "std": 1}'}
    graph(path, shape=(3, "H", "W"), metadata=metadata)
    with pytest.raises(BctError, match="expects 3x128x128, the images are 3x112x112"):
        load_onnx(path)
    assert load_onnx(path, size=128).embedding_size == 3
    assert load_onnx(graph(path, shape=(3, "H", "W"))).embedding_size == 3


def test_weights_in_another_file(tmp_path):
    model = onnx.load(graph(tmp_path / "one.onnx", **own_normalisation("Mul")))
    path = tmp_path / "two.onnx"
    onnx.save(model, path, save_as_external_data=True, location="two.data", size_threshold=0)
    with pytest.raises(BctError, match="keeps weights in another file and not its hash"):
        load_onnx(path)
    onnx.save(onnx.load(path), tmp_path / "joined.onnx")  # what the error proposes
    load_onnx(tmp_path / "joined.onnx")


def test_two_inputs(tmp_path):
    path = graph(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.FLOAT, [1]))
    onnx.save(model, path)
    with pytest.raises(BctError, match=r"has 2 inputs \(data, flag\), not one"):
        load_onnx(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x09" * 40])
def test_a_file_that_is_not_onnx(content, tmp_path):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BctError, match="can't be read as an ONNX file"):
        load_backbone(tmp_path / "model.onnx")


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    path = graph(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BctError, match=r"need onnxruntime .*\n.*pip install '\.\[onnx\]'"):
        load_backbone(path)
