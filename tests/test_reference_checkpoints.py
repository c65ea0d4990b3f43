"""Checkpoints of OpenBCT, BT-2 and FCT, built here from torchvision's modules: what goes out comes
in again, and no file runs that nobody has called a program."""

import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.bt2 import BT2Basis, BT2ResNet, bt2_checkpoint, trained
from support.foreign_files import (
    OpenCompatibleNetwork,
    advbct_checkpoint,
    openbct,
    opencompatible_checkpoint,
    save_script,
)
from support.networks import settle
from torch import nn

from backbones import get_model, own_state
from bct.errors import BctError
from bct.files import write_json
from bct.models.classifiers import read_classifier
from bct.models.reference_checkpoints import is_torchscript, reference_classifier, said_in
from bct.models.weights import load_backbone, network_of
from bct.safe.tensors import read_tensors

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
IMAGES = IMAGES.contiguous(memory_format=torch.channels_last)


def close(got, want):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-6 * max(1, want.abs().max())


# ---- OpenBCT


def test_openbct(tmp_path):
    path = tmp_path / "epoch_3_checkpoint.pth.tar"
    model = openbct(path, "module.", **{"old_fc.weight": torch.zeros(3, 512)})
    assert network_of(path) == "resnet18"
    loaded = load_backbone(path)  # which names its network itself
    weight, bias = reference_classifier(path)
    assert loaded.embedding_size == 512
    with torch.inference_mode():
        feature = loaded(IMAGES)
        close(F.linear(feature, weight, bias), model(IMAGES))
    assert weight.shape == (5, 512) and bias.shape == (5,)
    with pytest.raises(BctError, match="does not fit network resnet34"):
        load_backbone(path, "resnet34")


def test_the_cosine_classifier_of_openbct_is_turned(tmp_path):
    kernel = torch.randn(512, 5)  # (d, K)
    openbct(tmp_path / "a.pth.tar", "", kernel=kernel)
    weight, bias = reference_classifier(tmp_path / "a.pth.tar")
    assert torch.equal(weight, kernel.t()) and bias is None  # not fc, which was never trained
    assert load_backbone(tmp_path / "a.pth.tar").embedding_size == 512


# ---- AdvBCT and OpenCompatible: tests/test_bring_your_own.py has what their networks compute


@pytest.mark.parametrize(
    ("kind", "loss", "scale"),
    [("base", "arcface", None), ("compatible", "softmax", None), ("adv_compatible", "arcface", 20)],
)
def test_advbcts_config_says_what_its_checkpoint_is(tmp_path, kind, loss, scale):
    """A base training ignores the loss that its config names."""
    found = advbct_checkpoint(tmp_path, loss, kind)
    assert said_in(found.files[0]) == ("timm:resnet18", 48, scale)
    assert network_of(found.files[0]) == "timm:resnet18"
    given = read_classifier(found.files)
    plain = torch.load(found.files[0], weights_only=False, pickle_module=_Trusting)
    rows = plain["model"]["projection_cls.weight"]
    want = rows if scale is None else scale * F.normalize(rows)
    assert given.unit == (scale is not None) and given.bias is None
    close(given.weight, want)


class _Trusting:
    """pickle, with plain dicts in the place of what is missing here."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return _Node if module == "yacs.config" else super().find_class(module, name)

    load, loads, dump, dumps = pickle.load, pickle.loads, pickle.dump, pickle.dumps


class _Node(dict):
    pass


def test_opencompatibles_config_says_what_its_checkpoint_is(tmp_path):
    file = opencompatible_checkpoint(tmp_path).files[0]
    assert said_in(file) == ("gem_resnet18", 48, None)
    saved = read_tensors(file)
    saved["model"]["backbone.avgpool.p"] = torch.tensor([3.5])
    torch.save({"model": saved["model"]}, tmp_path / "b.pth.tar")
    with pytest.raises(BctError, match="does not say which network"):
        load_backbone(tmp_path / "b.pth.tar")
    with pytest.raises(BctError, match=r"does not fit network gem_resnet18 .*body.avgpool.p"):
        load_backbone(tmp_path / "b.pth.tar", "gem_resnet18")
    learnt = load_backbone(tmp_path / "b.pth.tar", "gem_resnet18_learnt")
    assert learnt.body.avgpool.p.item() == 3.5


def test_a_raw_state_dict_of_opencompatible(tmp_path):
    """Its own rules: module. is stripped; what has no prefix belongs to the trunk."""
    state = OpenCompatibleNetwork().state_dict()
    bare = {f"module.{k.removeprefix('backbone.')}": v for k, v in state.items()}
    torch.save(bare, tmp_path / "bare.pth")
    torch.save(state, tmp_path / "whole.pth")
    one, other = (load_backbone(tmp_path / f"{n}.pth", "gem_resnet18") for n in ("bare", "whole"))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    for lost in ("fc_emb.bias", "backbone.layer4.1.bn2.weight"):  # both references pass over it
        torch.save({k: v for k, v in state.items() if k != lost}, tmp_path / "part.pth")
        with pytest.raises(BctError, match="1 missing"):
            load_backbone(tmp_path / "part.pth", "gem_resnet18")
    with pytest.raises(BctError, match="do not exist"):
        load_backbone(tmp_path / "nowhere.pth.tar", "gem_resnet18")


@pytest.mark.parametrize("network", ["timm:resnet18", "gem_resnet18"])
def test_wrong_keys_are_refused(tmp_path, network):
    write = advbct_checkpoint if network == "gem_resnet18" else opencompatible_checkpoint
    with pytest.raises(BctError) as error:
        load_backbone(write(tmp_path).files[0], network)
    assert len(str(error.value).splitlines()) == 2


CONFIGS = {
    "no config": {},
    "a text": {"config": "x"},
    "a list": {"config": [1]},
    "no sections": {"config": {}},
    "odd sections": {"config": {"TRAIN": 3, "NEW_MODEL": {"ARCH": 5}, "new_model": []}},
    "odd values": {"config": {"TRAIN": {"TYPE": "base", "INPUT_SIZE": 10**9},
                              "MODEL": {"ARCH": None}, "LOSS": {"SCALE": "x"}}},
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("key", ["projection_dim.weight", "fc_emb.weight"])
def test_configs_that_say_nothing(tmp_path, key, config):
    saved = {"arch": "DistributedDataParallel", "model": {key: torch.zeros(2, 3)}}
    torch.save(saved | CONFIGS[config], tmp_path / "a.pth.tar")
    assert said_in(tmp_path / "a.pth.tar") == (None, None, None)


# ---- BT-2


@pytest.mark.parametrize("prefix", ["", "module."])
def test_bt2_backbone(tmp_path, prefix):
    torch.manual_seed(0)
    model = trained(BT2ResNet(24, 6, norm=True))
    bt2_checkpoint(tmp_path / "new.checkpoint", model, prefix)
    loaded = load_backbone(tmp_path / "new.checkpoint", "resnet18_narrow")
    weight, bias = reference_classifier(tmp_path / "new.checkpoint")
    with torch.inference_mode():
        logits, feature = model(IMAGES)
        got = F.normalize(loaded(IMAGES))
        close(got, feature.flatten(1))
        close(got @ weight.t(), logits)
    assert bias is None and loaded.embedding_size == 24
    with pytest.raises(BctError, match="does not say which network"):
        load_backbone(tmp_path / "new.checkpoint")
    with pytest.raises(BctError, match="does not fit network resnet18 "):
        load_backbone(tmp_path / "new.checkpoint", "resnet18")


def test_bt2_alexnet_and_vgg_keys():
    """They are called alexnet there, and end in a linear layer where the classifier was."""
    for name in ("alexnet", "vgg13_bn"):
        with torch.device("meta"):
            theirs = torchvision.models.get_model(name, weights=None, num_classes=24)
            ours = get_model(name, 24).state_dict()
        saved = theirs.state_dict()
        state = {f"alexnet.{key}": value for key, value in saved.items()}
        state, size = own_state(name, state | {"fc.weight": torch.zeros(6, 24)})
        assert size == 24 and state["embedding.weight"] is saved["classifier.6.weight"]
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.items()}


def test_bt2_basis_transformation_is_baked(tmp_path):
    torch.manual_seed(0)
    d, d_old, a, C = 24, 16, 6, 1.5
    model = trained(BT2Basis(d, d_old, a, C, classes=7))
    for layer in (model.ortholinear_p, model.ortholinear_old2):  # away from where they begin
        layer.parametrizations.weight.original.data += 0.3 * torch.randn(len(layer.weight), 1)
    path = tmp_path / "transfer.checkpoint"
    bt2_checkpoint(path, model, "module.")
    with pytest.raises(BctError, match="to_add_dim and C"):
        load_backbone(path, "resnet18_narrow+basis")
    about = {"network": "resnet18_narrow+basis", "to_add_dim": a, "C": C}
    write_json(tmp_path / "transfer.json", about)
    loaded = load_backbone(path)
    with torch.inference_mode():
        logits, _, f, n = model(IMAGES)
        got = loaded(IMAGES)
        close(got, n)
        weight, bias = reference_classifier(path)
        close(F.linear(f, weight), logits)
    assert bias is None and got.shape == (2, a + d)
    torch.testing.assert_close(got.norm(dim=1), torch.full((2,), (1 + C * C) ** 0.5))

    write_json(tmp_path / "transfer.json", about | {"to_add_dim": d_old + 1})
    with pytest.raises(BctError, match="have 16 dimensions"):
        load_backbone(path)
    write_json(tmp_path / "transfer.json", about)
    bt2_checkpoint(path, BT2ResNet(24, 6, norm=True), "")
    with pytest.raises(BctError, match=r"not those of a resnet18_narrow\+basis network"):
        load_backbone(path)


# ---- classifiers alone


def test_classifiers_in_files_of_their_own(tmp_path):
    rows, bias = torch.randn(4, 3), torch.randn(4)
    np.save(tmp_path / "old_fc.npy", rows.double().numpy())
    torch.save(rows, tmp_path / "tensor.pth")
    torch.save({"weight": rows, "bias": bias}, tmp_path / "dict.pth")
    torch.save({"some.name": rows}, tmp_path / "one.pth")
    for name, biased in (("old_fc.npy", 0), ("tensor.pth", 0), ("dict.pth", 1), ("one.pth", 0)):
        found, its_bias = reference_classifier(tmp_path / name)
        assert torch.equal(found, rows) and found.dtype == torch.float32
        assert (its_bias is not None) == biased and (not biased or torch.equal(its_bias, bias))


def test_files_without_a_classifier(tmp_path):
    def refused(name, words, save=torch.save, value=None):
        if value is not None:
            save(value, tmp_path / name)
        with pytest.raises(BctError, match=words):
            reference_classifier(tmp_path / name)

    # its fc belongs to the network
    refused("model.pt", "holds no classifier", value=get_model("demo_w32", 8).state_dict())
    refused(
        "bias.pth",
        "is no classifier",
        value={"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(2)},
    )
    refused("map.pth", "is no classifier", value={"fc.weight": torch.ones(3, 2, 5, 5)})
    refused("numbers.pth", "holds no state_dict", value={1: torch.ones(3, 2)})
    refused("none.pth", "does not exist")
    refused("none.npy", "does not exist")
    np.save(tmp_path / "ints.npy", np.ones((3, 2), np.int64))
    refused("ints.npy", "holds int64")
    np.save(tmp_path / "objects.npy", np.array([[print]], object))
    refused("objects.npy", "is damaged")


# ---- TorchScript


class Tiny(nn.Module):
    """Gives one of the references' forms of output: the embedding alone or behind others."""

    def __init__(self, outputs: int):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1, bias=False)
        self.norm, self.outputs = nn.BatchNorm2d(6), outputs

    def forward(self, x):
        feature = self.norm(self.conv(x)).mean((2, 3), keepdim=True)  # (B, 6, 1, 1)
        logits = self.fc(feature).flatten(1)
        if self.outputs == 1:
            return feature
        if self.outputs == 2:
            return logits, feature
        if self.outputs == 3:
            return logits, logits, feature.flatten(1)
        return logits, logits, logits, feature.flatten(1)


@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
def test_torchscript(tmp_path, outputs):
    model = settle(Tiny(outputs))
    save_script(model, tmp_path / "old.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_backbone(tmp_path / "old.pt", "torchscript", torch.bfloat16, fold=True)
    loaded.train()  # has no effect: batch norm must not learn from what it embeds
    for count in (1, 2, 3, 4):
        images = torch.randn(count, 3, 32, 32)
        with torch.autocast("cpu", torch.bfloat16):
            got = loaded(images)
        want = model(images)
        want = (want if outputs == 1 else want[-1]).detach().flatten(1)
        assert got.dtype == torch.float32 and not got.requires_grad
        close(got, want)
    assert loaded.embedding_size == 6
    weight, bias = reference_classifier(tmp_path / "old.pt", "torchscript")
    assert torch.equal(weight, model.fc.weight.flatten(1)) and bias is None


def test_torchscript_named_by_its_json_and_seen_at_its_size(tmp_path):
    path = tmp_path / "old.pt"
    head = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(12, 5))  # of 32 x 32 alone
    save_script(head, path)
    with pytest.raises(BctError, match="no embeddings of images of 112x112"):
        load_backbone(path, "torchscript")
    view = {"size": 32, "pixels": "imagenet"}
    write_json(tmp_path / "old.json", {"network": "torchscript", "view": view})
    loaded = load_backbone(path)
    close(loaded(IMAGES), head(IMAGES).detach())


class Speaks(nn.Module):
    """Whose TorchScript does something when it is loaded."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.p, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print("it runs")
        self.p, self.training = state[0], state[1]


def test_torchscript_runs_only_if_it_is_named(tmp_path, capfd):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Speaks()).save(str(path))
    capfd.readouterr()
    for network in (None, "r18", "fct", "resnet18_narrow+basis"):
        with pytest.raises(BctError, match="a program that runs when it is loaded"):
            load_backbone(path, network)
    with pytest.raises(BctError, match="a program that runs when it is loaded"):
        reference_classifier(path)
    assert is_torchscript(path) and "it runs" not in capfd.readouterr().out
    load_backbone(path, "torchscript")
    assert "it runs" in capfd.readouterr().out  # the test can tell


def test_files_that_are_no_torchscript(tmp_path):
    path, model = tmp_path / "old.pt", settle(Tiny(2))
    save_script(model, path)
    content = path.read_bytes()
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt")
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("PK\x03\x04 constants.pkl")
    for name in ("state.pt", "cut.pt", "text.pt"):
        assert not is_torchscript(tmp_path / name)
        with pytest.raises(BctError, match="is no TorchScript archive"):
            load_backbone(tmp_path / name, "torchscript")
    with pytest.raises(BctError, match="can't be read as weights"):
        load_backbone(tmp_path / "cut.pt", "r18")
    flipped = bytearray(content)
    flipped[content.index(model.conv.weight.detach().numpy().tobytes())] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    with pytest.raises(BctError, match="has another checksum"):
        load_backbone(tmp_path / "flipped.pt", "torchscript")
