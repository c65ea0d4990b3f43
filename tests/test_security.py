"""Files of others: nothing in them is executed, and what would be is refused in two lines."""

import os
import pickle
import runpy
import shutil
import sys
from collections import OrderedDict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict
from support.foreign_files import missing_class
from support.pictures import jpeg

from bct.data.sets import SyntheticSet
from bct.errors import BctError
from bct.files import ROOT, sha256_file, write_json
from bct.models.onnx_model import WEIGHTS_FILE, load_onnx
from bct.models.reference_checkpoints import said_in
from bct.models.weights import load_backbone
from bct.old_model import OldModel
from bct.protocols.pairs import load_bin
from bct.safe.lists import load_lists
from bct.safe.tensors import Stranger, read_state, read_tensors
from bct.stored.artefacts import open_artefact, write_artefact
from bct.stored.vector_files import open_vectors
from tools.ijbc.report import read_scores

FAKE = "<img src=x onerror=alert(1)>&\"'"


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def evil(tmp_path):
    """The payload; afterwards it must not have run."""
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.is_dir()  # it does run where pickles are trusted
    marker.rmdir()
    yield Evil(marker)
    assert not marker.exists()


def refused(function, *arguments, word=""):
    with pytest.raises(BctError) as info:
        function(*arguments)
    assert len(str(info.value).splitlines()) == 2, str(info.value)
    assert word in str(info.value), str(info.value)


def save_npy(path, array):
    np.save(path, array, allow_pickle=True)


@pytest.mark.parametrize("name", ["model.pt", "backbone.pth"])
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "nested", "tensor"])
def test_weights(tmp_path, evil, name, how):
    path = tmp_path / name
    if how == "pickle":
        path.write_bytes(pickle.dumps({"a": evil}))
    else:
        inside = {
            "nested": {"state_dict": {"a": [evil]}},
            "tensor": {"a": torch.ones(3), "b": evil},
        }
        torch.save(inside.get(how, evil), path, _use_new_zipfile_serialization=how != "legacy")
    refused(load_backbone, path, "demo_w16", word="can't be read as weights")


def test_the_classifier_of_an_old_model_that_a_manifest_names(tmp_path, evil):
    torch.save({"cls_fc.weight": evil}, tmp_path / "model.pt")
    write_json(tmp_path / "model.json", {"num_classes": 3})
    old = OldModel(EasyDict(), SyntheticSet(3, 3))
    old.manifests["old_embedding"] = {"weights": str(tmp_path / "model.pt")}
    refused(old.classifier, word="can't be read as weights")


@pytest.mark.parametrize("content", ["[]", "{}", '{"network": 17}', '{"network": ["r50"]}'])
def test_a_model_json_that_names_no_network(tmp_path, content):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(content)
    refused(load_backbone, tmp_path / "model.pt", word="names no network")


@pytest.mark.parametrize("where", ["whole", "image", "flags", "array"])
def test_verification_sets(tmp_path, evil, where):
    path = tmp_path / "lfw.bin"
    image = jpeg(0, 0)
    values = {
        "whole": evil,
        "image": ([image, evil], [True]),
        "flags": ([image, image], evil),
        "array": (np.array([image, evil], object), [True]),
    }
    path.write_bytes(pickle.dumps(values[where]))
    refused(load_bin, path, word="is not a verification set")


def test_tuples_that_double_forty_times_are_named_at_once():
    """Their repr would take weeks; this only ends if nobody asks for it."""
    doubled = b")q\x00" + b"".join(b"h%c\x86q%c" % (k, k + 1) for k in range(40))
    with pytest.raises(ValueError, match="an array of a tuple"):
        load_lists(b"\x80\x02cnumpy\ndtype\n" + doubled + b"\x85R.")


def test_arrays(tmp_path, evil):
    array = np.array([[evil]], object)
    path = tmp_path / "a.npy"
    save_npy(path, array)
    refused(open_vectors, path, 1, word="can't be read as embeddings")
    refused(read_scores, path, word="can't be read as embeddings")
    np.savez(tmp_path / "a.npz", embeddings=array, scores=array)
    refused(open_vectors, tmp_path / "a.npz", 1, word="can't be read as embeddings")
    refused(read_scores, tmp_path / "a.npz", word="holds no scores")
    for member in ("names", "label"):
        np.savez(tmp_path / "b.npz", **{"scores": np.ones((1, 2)), member: array})
        refused(read_scores, tmp_path / "b.npz", word="holds no scores")
    for name in ("c.npy", "c.npz"):  # a bare pickle, which np.load would take for one of its own
        (tmp_path / name).write_bytes(pickle.dumps(evil))
        refused(open_vectors, tmp_path / name, 1, word="can't be read as embeddings")
        refused(read_scores, tmp_path / name, word="holds no scores")


@pytest.mark.parametrize("how", ["objects", "pickle", "zip"])
def test_artefacts(tmp_path, evil, how):
    path = tmp_path / "a.npy"
    with write_artefact(path, (1, 1), "float32", kind="old_embedding") as out:
        out[:] = 1
    array = np.array([[evil]], object)
    if how == "objects":
        save_npy(path, array)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        with open(path, "wb") as file:
            np.savez(file, a=array)
    refused(open_artefact, path, word="is damaged")


def test_an_artefact_that_claims_to_be_huge(tmp_path):
    path = tmp_path / "a.npy"
    with write_artefact(path, (1, 1), "float32", kind="old_embedding") as out:
        out[:] = 1
    for shape in ((1 << 40, 1), (1 << 62, 1 << 62), (-1, 1)):
        with open(path, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        refused(open_artefact, path, word="is damaged")


# ---- ONNX: weights in files that the graph names


def external(onnx, location):
    tensor = onnx.TensorProto(name="w", dims=[3, 2], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("place", ["initializer", "sparse", "constant", "subgraph", "function"])
@pytest.mark.parametrize("location", ["../secret", "absolute", "model.onnx.data"])
def test_onnx_with_data_elsewhere(tmp_path, place, location):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(6, dtype=np.float32).tobytes())
    (tmp_path / "models").mkdir()
    tensor = external(onnx, str(secret) if location == "absolute" else location)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    image = helper.make_tensor_value_info("data", 1, ["n", 3, 112, 112])
    out = helper.make_tensor_value_info("out", 1, ["n", 2])
    w = helper.make_tensor_value_info("w", 1, [3, 2])
    true = helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True])
    branch = helper.make_graph([constant], "branch", [], [w])
    nodes = {
        "constant": [constant],
        "subgraph": [
            helper.make_node("Constant", [], ["true"], value=true),
            helper.make_node("If", ["true"], ["w"], then_branch=branch, else_branch=branch),
        ],
        "function": [helper.make_node("weights", [], ["w"], domain="own")],
    }.get(place, [])
    nodes += [
        helper.make_node("GlobalAveragePool", ["data"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "weights", [], ["w"], [constant], opsets[:1])]
    graph = helper.make_graph(nodes, "graph", [image], [out])
    if place == "initializer":
        graph.initializer.append(tensor)
    if place == "sparse":
        graph.sparse_initializer.add(dims=[3, 2]).values.CopyFrom(tensor)
    model = helper.make_model(
        graph, opset_imports=opsets, functions=functions * (place == "function"), ir_version=10
    )
    if location != "model.onnx.data":  # even with the hash that a file beside it needs
        model.metadata_props.add(key=WEIGHTS_FILE, value=sha256_file(secret))
    path = tmp_path / "models" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    refused(load_onnx, path, word="keeps weights in another file")


# ---- code and names beside models


def evaluate(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "eval" / f"{name}.py"), run_name="__main__")


@pytest.fixture
def common(ijb, weights, tmp_path, monkeypatch):
    """Arguments for two models in folders that hold code or have odd names."""
    marker = f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n"
    old, new = tmp_path / FAKE, tmp_path / r"new $\frac$"
    (tmp_path / "old").rename(old)
    (tmp_path / "new").rename(new)
    for folder in (old, new, ijb.parent, ijb, tmp_path):
        for name in ("config.py", "model.py", "sitecustomize.py"):
            (folder / name).write_text(marker)
    monkeypatch.chdir(tmp_path)
    yield ["-m", new / "model.pt", "-net", "demo_w16", "-m_old", old / "model.pt", "-old_net",
           "demo_w16", "--amp", "off", "--far", "1e-1"]  # fmt: skip
    assert not (tmp_path / "executed").exists()


def test_ijbc_with_code_and_markup_beside_models(common, ijb, tmp_path, monkeypatch):
    third = tmp_path / r"$\frac$"
    shutil.copytree(common[1].parent, third)
    evaluate(monkeypatch, "ijbc", *common, "-m", common[1], third / "model.pt", "-net", "demo_w16",
             "demo_w16", "-d", ijb.parent, "-o", tmp_path / "out", "--cache", tmp_path / "cache",
             "-j", "0", "--matrix")  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_verification_with_code_and_markup_beside_models(common, tmp_path, monkeypatch):
    images = [jpeg(i // 2, i) for i in range(40)]
    flags = [True, False] * 10
    (tmp_path / "toy.bin").write_bytes(pickle.dumps((images, flags)))
    evaluate(monkeypatch, "verification", *common, "--set", tmp_path / "toy.bin", "-o",
             tmp_path / "out")  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def test_the_report_shows_names_as_they_are(common, ijb, tmp_path, monkeypatch):
    evaluate(monkeypatch, "report", *common, "-d", ijb.parent, "-o", tmp_path / "out",
             "--cache", tmp_path / "cache", "-j", "0", "--resamples", "20",
             "--images-per-second", "100")  # fmt: skip
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    read = Reader(text)
    assert FAKE in read.text and FAKE not in text
    assert not read.tags & {"img", "script", "iframe", "object"}
    assert not [name for name in read.attributes if name.startswith("on")]


# ---- configs in checkpoints of AdvBCT and OpenCompatible


class _Calls:
    """Pickled as a call of a named class with these arguments."""

    def __init__(self, kind, *arguments):
        self.call = kind, arguments

    def __reduce__(self):
        return self.call


def test_what_stands_for_a_config_runs_nothing(tmp_path, evil):
    """And takes no memory by a number; any other class of these packages is refused."""
    weights = {"w": torch.ones(3, 2)}
    with missing_class("yacs.config", "CfgNode", dict) as CfgNode:
        node = CfgNode(OUTPUT="x")
        node.__dict__["keys"] = "no method"
        torch.save({"model": weights, "config": node}, tmp_path / "node.pt")
        torch.save({"model": weights, "config": CfgNode(a=evil)}, tmp_path / "evil.pt")
    with missing_class("parse_config", "ConfigParser", object) as Parser:
        torch.save({"model": weights, "config": _Calls(Parser, 10**15)}, tmp_path / "many.pt")
        parser = Parser()
        parser.__dict__.update(_config={"arch": Path("a") / "b"}, __class__="x")
        torch.save({"model": weights, "config": parser}, tmp_path / "parser.pt")
    with missing_class("parse_config", "Other", object) as Other:
        torch.save({"model": weights, "config": Other()}, tmp_path / "other.pt")
    for name in ("node", "many", "parser"):
        assert torch.equal(read_state(tmp_path / f"{name}.pt")["w"], weights["w"])
        said_in(tmp_path / f"{name}.pt")
    assert type(read_tensors(tmp_path / "node.pt")["config"]) is OrderedDict
    assert type(read_tensors(tmp_path / "parser.pt")["config"]) is Stranger
    refused(read_state, tmp_path / "evil.pt", word="which runs code")
    refused(read_state, tmp_path / "other.pt", word="parse_config.Other")
