"""Files that torch.save wrote, or that somebody takes for them: read, or named in two lines, and
never in more memory than they can hold."""

import argparse
import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from support.mutations import BYTES, attempt, bounded, mutated
from torch import nn

from backbones import get_model
from bct.errors import BctError
from bct.files import write_json
from bct.models.about import view_of_model
from bct.models.weights import load_backbone
from bct.safe.tensors import read_state, read_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.num_batches_tracked": torch.tensor(3)}


def refused(path, word, read=read_state):
    with pytest.raises(BctError) as info:
        bounded(96, read, path)
    assert len(str(info.value).splitlines()) == 2
    assert all(line.isprintable() for line in str(info.value).splitlines()), str(info.value)
    assert word in str(info.value), str(info.value)


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def same(state):
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


# ---- what loads


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        *("state_dict_backbone", "state_dict", "model_state_dict", "net_state_dict"),
        *("model", "net", "backbone", "model.state_dict", "net.module.x"),
    ],
)
def test_wrappers(tmp_path, wrap, legacy):
    value = dict(STATE)
    for key in reversed(wrap.removesuffix(".module.x").split(".")):
        value = {"epoch": 3, key: value, "lr": [0.1]}
    path = saved(tmp_path / "a.pt", value, _use_new_zipfile_serialization=not legacy)
    same(read_state(path))


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "module.module.", "module._orig_mod.", "_orig_mod.module."),
        *("module.backbone.", "module._orig_mod.module._orig_mod.backbone."),
    ],
)
def test_prefixes(tmp_path, prefix):
    same(read_state(saved(tmp_path / "a.pt", {prefix + k: v for k, v in STATE.items()})))


def test_the_prefix_of_a_compiled_part(tmp_path):
    state = {k.replace("a.", "module.a._orig_mod."): v for k, v in STATE.items()}
    same(read_state(saved(tmp_path / "a.pt", state)))


def test_prefixes_that_make_two_tensors_one(tmp_path):
    path = saved(tmp_path / "a.pt", STATE | {"module.a.weight": torch.zeros(2, 3)})
    refused(path, "holds two tensors that are a.weight")


@pytest.mark.parametrize("legacy", [False, True])
def test_values_of_numpy_beside_weights(tmp_path, legacy):
    beside = {
        "best": np.float64(0.5),
        "epoch": np.int64(3),
        "flag": np.bool_(True),
        "history": np.arange(3.0),
        "big": np.arange(3, dtype=">i2"),
        "kind": np.dtype("float32"),
        "nested": [{"x": np.float32(2)}, (np.ones((2, 2)),)],
        "set": np.str_("lfw"),
        "none": np.str_(""),
        "bytes": np.bytes_(b"lfw"),
        "sets": np.array(["lfw", "cfp_fp"]),
        "empty": b"",
        "no history": np.empty(0),
        "wave": np.complex64(1j),
        "day": np.datetime64("2020-01-01"),
        "fields": np.zeros(2, [("a", "f4"), ("b", "U2")]),
        "objects": np.array(["lfw", 1], object),
        "random": np.random.RandomState(0).get_state(),
    }
    value = {"state_dict": OrderedDict(STATE), **beside}
    path = saved(tmp_path / "a.pt", value, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(path)
    assert (found["best"], found["epoch"], found["flag"]) == (0.5, 3, True)
    np.testing.assert_array_equal(found["history"], np.arange(3.0))
    np.testing.assert_array_equal(found["big"], np.arange(3))
    assert (found["set"], found["none"], found["bytes"]) == ("lfw", "", b"lfw")
    assert found["sets"].tolist() == ["lfw", "cfp_fp"] and found["objects"] == ["lfw", 1]
    same(read_state(path))


def test_numbers_among_weights_and_weights_of_numpy(tmp_path):
    value = {"a.weight": STATE["a.weight"].numpy(), "epoch": 3, "best": np.float32(1), "by": "me"}
    value["a.num_batches_tracked"] = STATE["a.num_batches_tracked"]
    same(read_state(saved(tmp_path / "a.pt", value)))


# ---- what is said of other files


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


def tarred(path):
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("weights"), io.BytesIO())


def into(path, write, *arrays, **named):
    with open(path, "wb") as file:
        write(file, *arrays, **named)


KINDS = {  # how a file is written, and words of the error
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
        "a git-lfs pointer",
    ),
    "page": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html></html>"), "a web page"),
    "page, upper case": (lambda path: path.write_text("<HTML><body>404"), "a web page"),
    "page with a mark": (lambda path: path.write_bytes(b"\xef\xbb\xbf<html>"), "a web page"),
    "json": (lambda path: path.write_text('{"error": "no"}'), "a JSON text"),
    "text": (lambda path: path.write_text("Not found\n"), "a text (Not found)"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "a gzip archive"),
    "tar": (tarred, "a tar archive"),
    "zip": (lambda path: archive(path, a=b"x"), "a zip archive of a"),
    "npz": (lambda path: into(path, np.savez, w=np.ones(3)), "an archive of numpy's arrays"),
    "npy": (lambda path: into(path, np.save, np.ones(3)), "an array that numpy saved"),
    "safetensors": (
        lambda path: path.write_bytes(struct.pack("<Q", 8) + b'{"a": {}}' + bytes(40)),
        "a safetensors file",
    ),
    "hdf5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
    "module": (
        lambda path: torch.save(nn.Sequential(nn.Linear(2, 2)), path),
        "whole pickled modul",
    ),
    "own module": (lambda path: torch.save(Net(), path), "whole pickled module (test_tensor_files"),
    "old module": (
        lambda path: torch.save(Net(), path, _use_new_zipfile_serialization=False),
        "whole pickled module (test_tensor_files.Net)",
    ),
    "module in it": (lambda path: torch.save({"model": Net()}, path), "whole pickled module"),
    "namespace": (
        lambda path: torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, path),
        "asks for argparse.Namespace",
    ),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "has not written"),
    "noise": (lambda path: path.write_bytes(bytes(range(128, 256)) * 9), "damaged"),
    "script": (
        lambda path: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path)),
        "TorchScript, a program",
    ),
    "escapes": (
        lambda path: path.write_bytes(b"\x80\x02cos\x1b[31m\nsys\x1b[0m\n."),
        "can't be read",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_a_file_is_instead(tmp_path, kind):
    write, words = KINDS[kind]
    write(tmp_path / "a.pt")
    refused(tmp_path / "a.pt", words)
    refused(tmp_path / "a.pt", words, read_tensors)


def test_a_folder_and_nothing(tmp_path):
    refused(tmp_path, "is no file")
    refused(tmp_path / "a.pt", "does not exist")


ONES = torch.ones(3)
TENSORS = {
    "sparse": (lambda: torch.ones(3, 3).to_sparse(), "a sparse tensor"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
    "quantised": (
        lambda: torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8),
        "a quantised",
    ),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "of complex numbers"),
    "meta": (lambda: torch.ones(3, device="meta"), "without data"),
    "nan": (lambda: torch.tensor([1, torch.nan]), "not finite"),
    "inf": (lambda: torch.tensor([1, -torch.inf], dtype=torch.float16), "not finite"),
    "int8": (lambda: torch.ones(3, dtype=torch.int8), "of int8, not floats"),
    "bool": (lambda: torch.ones(3, dtype=torch.bool), "of bool, not floats"),
    "list": (lambda: [1.0, 2.0], "is no tensor"),
    "text array": (lambda: np.array(["x"]), "is no tensor"),
    "float8": (lambda: ONES.to(torch.float8_e4m3fn), "a tensor of a new type"),
    "uint16": (lambda: torch.ones(3, dtype=torch.uint16), "a tensor of a new type"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_that_no_network_has(tmp_path, kind, legacy):
    make, words = TENSORS[kind]
    path = tmp_path / "a.pt"
    torch.save({**STATE, "odd": make()}, path, _use_new_zipfile_serialization=not legacy)
    refused(path, words)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_later_protocols_of_pickle(tmp_path, protocol, legacy):
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not legacy}
    beside = {"state_dict": STATE, "best": np.arange(3)}  # of bytes, which 2 can't write as such
    path = saved(tmp_path / "a.pt", beside, **options)
    refused(path, "pickled with a protocol above 2")
    if protocol == 3:
        same(read_state(saved(path, STATE, **options)))
    module = saved(tmp_path / "b.pt", nn.Sequential(nn.Linear(2, 2)), **options)
    refused(module, "whole pickled module")


# ---- more than a file can hold


def repacked(path, how=zipfile.ZIP_DEFLATED, **replaced):
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, replaced.get(name.partition("/")[2], content))
    return path


def with_pickle(path, content):
    return repacked(saved(path, STATE), zipfile.ZIP_STORED, **{"data.pkl": content})


DOUBLED = b")q\x00" + b"".join(b"h%c\x86q%c" % (k, k + 1) for k in range(100))
BOMBS = {
    "expanded": lambda path: saved(path, {"w": torch.ones(1).expand(650_000_000)}),
    "strided": lambda path: saved(
        path, {"w": torch.ones(1 << 15).as_strided((1 << 15, 1 << 15), (1, 0))}),
    "many views": lambda path: saved(path, {str(i): torch.ones(1 << 20)[:] for i in range(2)} | {
        f"v{i}": BASE[:] for i in range(200)}),
    "one array under many names": lambda path: saved(
        path, dict.fromkeys(map(str, range(500)), BASE[: 1 << 18].numpy())),
    "arrays of the same bytes": lambda path: saved(path, {str(i): Again() for i in range(500)}),
    "a list of objects in it": lambda path: saved(
        path, {"w": objects(torch.ones(1).expand(650_000_000))}),
    "deflated": lambda path: repacked(saved(path, {"w": torch.zeros(20 << 20)})),
    "a member of 256 MiB": lambda path: repacked(saved(path, STATE), version=bytes(1 << 28)),
    "bytearray(1 TiB)": lambda path: with_pickle(
        path, b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + bytes([0] * 5 + [1]) + b"\x85R."),
    "doubled tuples, hashed": lambda path: with_pickle(path, b"\x80\x02}" + DOUBLED + b"K\x01s."),
    "deep tuples, hashed": lambda path: with_pickle(
        path, b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."),
    "array of 1 TiB": lambda path: with_pickle(
        path, b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        b"\x8a\x06" + bytes([0] * 5 + [1]) + b"\x85X\x01\x00\x00\x00btR."),
    "bytes(1 TiB)": lambda path: with_pickle(
        path, b"\x80\x02c__builtin__\nbytes\n\x8a\x06" + bytes([0] * 5 + [1]) + b"\x85R."),
    "string type of 2 GiB": lambda path: with_pickle(
        path, b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n"
        b"(X\x0b\x00\x00\x00S2147483647K\x00K\x01tRtR."),
}  # fmt: skip
BASE = torch.ones(1 << 20)


def objects(*values):
    row = np.empty(len(values), object)
    for i, value in enumerate(values):
        row[i] = value
    return row


class Again:
    """Pickled anew each time as an array, whose bytes are written once."""

    content = bytes(1 << 20)

    def __reduce__(self):
        state = (1, (1 << 18,), np.dtype("<f4"), False, self.content)
        return np.ones(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    path = BOMBS[name](tmp_path / "a.pt")
    refused(path, "a.pt")


def test_tied_weights_are_no_bomb(tmp_path):
    w = torch.randn(1 << 20)
    state = read_state(saved(tmp_path / "a.pt", {"a": w, "b": w.view(1024, 1024)}))
    assert torch.equal(state["a"], state["b"].flatten())


def test_an_honest_archive_packed_again_loads(tmp_path):
    same(read_state(repacked(saved(tmp_path / "a.pt", STATE))))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("r2060", marks=pytest.mark.slow),
        *("r50", "vit_h", "resnet99999", "r50+basis", "fct", "x" * 10**6),
    ],
)
def test_a_network_is_not_built_before_its_weights_fit(tmp_path, network):
    path = saved(tmp_path / "model.pt", get_model("demo_w16", 8).state_dict())
    write_json(tmp_path / "model.json", {"network": network})
    refused(path, "", load_backbone)


def test_an_embedding_size_is_not_believed(tmp_path):
    state = get_model("demo_w16", 8).state_dict()
    last = [key for key in state if key.endswith("running_mean")][-1]
    path = saved(tmp_path / "a.pt", state | {last: torch.zeros(1 << 22)})
    refused(path, "of another shape", lambda file: load_backbone(file, "demo_w16"))


@pytest.mark.parametrize(
    "view",
    [
        *({"size": size} for size in (0, -1, 10**9, 112.5, "112", None, True, [112])),
        *(
            {"crop": "none2"},
            {"pixels": ["face"]},
            {"mirror": "yes"},
            {"other": 1},
            [],
            3,
            "x\x1b[1m",
        ),
    ],
)
def test_views_that_are_none(tmp_path, view):
    write_json(tmp_path / "model.json", {"view": view})
    refused(tmp_path / "model.pt", "holds no view of ours", view_of_model)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.faults)])
@pytest.mark.parametrize("legacy", [False, True])
def test_mutated_checkpoints(tmp_path, legacy, times):
    """Without checksums to help: the pickle itself is mutated."""
    path = tmp_path / "a.pt"
    value = {"state_dict": STATE, "best": np.float64(1), "x": [(1, 2.5), {"y": np.ones(2)}]}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    whole, read = path.read_bytes(), 0
    if not legacy:
        with zipfile.ZipFile(path) as file:
            inside = file.read("a/data.pkl")
    for data in mutated(whole if legacy else inside, BYTES, 250 * times, 11):
        path.write_bytes(data if legacy else whole)
        if not legacy:
            repacked(path, zipfile.ZIP_STORED, **{"data.pkl": data})
        read += attempt(r"a\.pt", read_state, path) is not None
    assert 0 < read < 250 * times
