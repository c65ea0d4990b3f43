"""ONNX files, exported and of others, and stored embeddings in the place of a network."""

import json
import resource
import shutil
import sys

import numpy as np
import pytest
import torch
from support.networks import settle
from torch import nn

from backbones import NETWORKS, get_model
from bct.data.views import View, normalised_as
from bct.errors import BctError
from bct.files import sha256_file, write_json
from bct.models.onnx_model import PREPROCESSING, WEIGHTS_FILE, load_onnx, size_in
from bct.models.onnx_probe import probe
from bct.models.weights import load_backbone
from tools import export_onnx
from tools.export_onnx import check, export

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, TensorProto = onnx.helper, onnx.TensorProto

from support.onnx_graphs import graph, node, normalised, own_normalisation, pixels  # noqa: E402 - after the skip

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


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", *map(str, arguments)])
    export_onnx.main()


LARGE = ("gem_resnet18", "gem_resnet18_learnt", "timm:resnet18")


@pytest.mark.parametrize(
    "name", ["gem_w16", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_a_network_for_images_is_exported_with_its_view(name, tmp_path, monkeypatch):
    """The file is fed what the network was, also by whoever knows nothing of its model.json."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = settle(get_model(name, 24))
    if name.endswith("learnt"):
        model.body.avgpool.p.data.fill_(2.5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(BctError, match="does not say how it sees an image"):
        run_tool(monkeypatch, tmp_path / "model.pt", "-net", name, "-o", tmp_path / "no.onnx")
    view = View(64, "none", False, "imagenet")
    write_json(tmp_path / "model.json", {"network": name, "view": view._asdict()})
    run_tool(monkeypatch, tmp_path / "model.pt", "-o", tmp_path / "apart" / "other.onnx")
    path = tmp_path / "apart" / "other.onnx"
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    said = json.loads(metadata[PREPROCESSING])
    assert said["size"] == 64 and said["colours"] == "RGB"
    assert said["mean"] == [123.675, 116.28, 103.53] and said["std"] == [58.395, 57.12, 57.375]
    bytes_in = torch.randint(0, 256, (3, 3, 64, 64)).float()
    mean, std = (torch.tensor(said[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        want = model((bytes_in - mean) / std)
    for pixels_in, x in (("imagenet", (bytes_in - mean) / std), ("face", bytes_in / 127.5 - 1),
                         ("raw", bytes_in)):  # fmt: skip
        got = load_onnx(path, 64, pixels_in)(x)
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    with pytest.raises(BctError, match="expects 3x64x64, the images are 3x112x112"):
        load_onnx(path)


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
        found = probe(path, (112, 112), seconds)
        raise BctError(found["problem"] if "problem" in found else found["unreadable"], "-")
    assert len(str(info.value).splitlines()) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # 128 MiB


def test_a_graph_that_never_ends_for_some_images_is_stopped(tmp_path):
    nodes, _ = endless()
    compared = [node("ReduceMax", "mean", "most", keepdims=0), node("Greater", "most", "yes")]
    compared[1].input.append("limit")
    path = graph(tmp_path / "a.onnx", after=[*compared, *nodes], constants={"limit": np.float32(2)})
    model = load_onnx(path)
    assert model(torch.zeros(2, 3, 112, 112)).shape == (2, 3)
    model.patience, model.seconds = 0.5, 0.0
    with pytest.raises(BctError, match="has not ended after 0 s with 2 images"):
        model(torch.full((2, 3, 112, 112), 9.0))


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


def test_an_image_networks_file_has_its_view(tmp_path):
    view = View((48, 24), "resized", True, "imagenet")
    model = trained("conv4_w32")
    export(model, tmp_path / "model.onnx", {"bct.network": "conv4_w32"}, view=view)
    assert check(model, tmp_path / "model.onnx", view) < 1e-4
    assert size_in(tmp_path / "model.onnx") == (48, 24)
    with pytest.raises(BctError, match="expects 3x48x24, the images are 3x24x48"):
        load_onnx(tmp_path / "model.onnx", (24, 48))
    # fed what is normalised as faces are, it gives the same: the file says what its graph wants
    images = torch.rand(3, 3, 48, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        want = model(normalised_as(images, "face", "imagenet"))
    got = load_onnx(tmp_path / "model.onnx", (48, 24), "face")(images)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
