"""timm's networks as trunks, and a project that can do without timm."""

import copy
import re
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.foreign_files import AdvBCTNetwork
from support.networks import randomly, settle
from torch import nn

from backbones import get_model
from backbones.inference import fold_batch_norm
from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import ROOT, write_json
from bct.models.weights import load_backbone
from bct.training.frozen import freeze
from bct.training.initial import start_from


def without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)


def test_without_timm_only_its_networks_are_missing(monkeypatch, tmp_path):
    without_timm(monkeypatch)
    for make in (
        lambda: get_model("timm:resnet18"),
        lambda: load_backbone(tmp_path / "model.pt", "timm:resnet18"),
    ):
        torch.save({"projection_dim.weight": torch.zeros(2, 512)}, tmp_path / "model.pt")
        with pytest.raises(BctError) as error:
            make()
        what, do = str(error.value).splitlines()
        assert "need timm, which is not installed" in what and 'pip install -e ".[timm]"' in do
    assert get_model("gem_resnet18", 8).embedding_size == 8


def test_nothing_else_imports_timm():
    written = [
        file.relative_to(ROOT).as_posix()
        for part in ("bct", "backbones", "tools", "eval", "methods")
        for file in (ROOT / part).rglob("*.py")
        if re.search(r'^\s*(import|from) timm\b|import_module\("timm', file.read_text(), re.M)
    ]
    assert written == ["backbones/timm_nets.py"]


# ---- with it


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


def test_advbcts_network(timm):
    """Plain torch with the same weights gives the same, for images that are not square, too."""
    torch.manual_seed(0)
    theirs = settle(AdvBCTNetwork())
    model = get_model("timm:resnet18", 16).eval()
    state = theirs.state_dict()
    model.load_state_dict({k: state[k] for k in model.state_dict()})
    assert not {k for k in state if k.startswith(("convnet.", "projection_dim.", "bn."))} - set(
        model.state_dict()
    )
    assert sum(p.numel() for p in model.parameters()) == 11176512 + 512 * 16 + 2 * 16
    folded = fold_batch_norm(copy.deepcopy(model))
    assert not [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for height, width in ((64, 32), (50, 50)):
        x = torch.randn(2, 3, height, width)
        with torch.inference_mode():
            want = theirs(x)
            torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(folded(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_trains_and_returns_fp32(timm, dtype):
    torch.manual_seed(0)
    model = get_model("timm:resnet18", 24, dtype).train()
    out = model(torch.randn(4, 3, 64, 32))
    assert out.shape == (4, 24) and out.dtype == torch.float32
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "features", "side"),
    [
        ("swsl_resnet18", 512, None),  # of timm 0.6
        ("resnet50.tv_in1k", 2048, None),
        ("mobilenetv3_large_100", 1280, None),  # a layer behind its 960 features
        ("deit_tiny_patch16_224", 192, (224, 224)),
    ],
)
def test_names_and_sizes(timm, name, features, side):
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        model = get_model(f"timm:{name}", 8).eval()
    assert model.projection_dim.weight.shape == (8, features) and model.side == side
    images = torch.empty(2, 3, *(side or (64, 96)), device="meta")
    assert model.convnet(images).flatten(1).shape == (2, features)
    if side:
        with pytest.raises(BctError, match="takes images of 224x224, these are 96x64"):
            model(torch.empty(2, 3, 64, 96))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet5O", "did you mean timm:resnet50"),
        ("resnet50.nonsense", "leave its tag out: timm:resnet50"),
        ("hf-hub:somebody/something", "timm has no network"),  # would look in the net
        ("local-dir:/tmp", "timm has no network"),
        ("", "timm has no network"),
    ],
)
def test_names_it_has_not(timm, name, words):
    with pytest.raises(BctError, match=words) as error:
        get_model(f"timm:{name}")
    assert len(str(error.value).splitlines()) == 2


def test_our_files_load(timm, tmp_path):
    model = settle(get_model("timm:resnet18", 20))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    write_json(tmp_path / "model.json", {"network": "timm:resnet18"})
    x = torch.randn(2, 3, 64, 32)
    loaded = load_backbone(tmp_path / "model.pt")
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x)) and loaded.embedding_size == 20
    with pytest.raises(BctError, match="does not fit network timm:resnet34"):
        load_backbone(tmp_path / "model.pt", "timm:resnet34")


@pytest.mark.parametrize("whose", ["timm", "torchvision"])
@pytest.mark.parametrize("network", ["timm:resnet18", "gem_resnet18", "resnet18"])
def test_imagenets_weights_start_a_training(timm, job, tmp_path, network, whose):
    """Both systems' files, into both kinds of network: the whole trunk is taken."""
    made = (
        timm.create_model("resnet18", pretrained=False)
        if whose == "timm"
        else torchvision.models.resnet18(weights=None)
    )
    theirs = randomly(made, 2).state_dict()
    torch.save(theirs, tmp_path / "resnet18.pth")
    model = get_model(network, 32)
    drawn = copy.deepcopy(model.state_dict())
    cfg = job(f"init_from={tmp_path / 'resnet18.pth'}", f"network={network}")
    start = start_from(cfg, ImageSet(), model, nn.Module())
    prefix = "convnet." if network.startswith("timm:") else "body."
    own = model.state_dict()
    for key, value in theirs.items():
        assert key.startswith("fc.") or torch.equal(own[prefix + key], value), key
    layer = "projection_dim.weight" if prefix == "convnet." else "embedding.weight"
    assert torch.equal(own[layer], drawn[layer]) and layer in start.fit.missing
    if network != "resnet18":  # whose file of a trunk alone is a network
        with pytest.raises(BctError, match=r"no network .* with its embedding\n.*init_from="):
            load_backbone(tmp_path / "resnet18.pth", network)


def test_the_trunk_of_another_network_is_refused(timm, job, tmp_path):
    torch.save(randomly(torchvision.models.mobilenet_v2()).state_dict(), tmp_path / "x.pth")
    cfg = job(f"init_from={tmp_path / 'x.pth'}", "network=timm:resnet18")
    model = get_model("timm:resnet18", 16)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BctError, match="weights of network timm:resnet18"):
        start_from(cfg, ImageSet(), model, nn.Module())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_its_cosine_is_that_of_the_folder(timm, tmp_path):
    """What is saved by our names is AdvBCT's model without its heads."""
    torch.manual_seed(0)
    theirs = settle(AdvBCTNetwork())
    torch.save({"model": theirs.state_dict()}, tmp_path / "a.pth.tar")
    loaded = load_backbone(tmp_path / "a.pth.tar", "timm:resnet18", fold=True)
    x = torch.randn(3, 3, 40, 40)
    with torch.inference_mode():
        assert F.cosine_similarity(loaded(x), theirs(x)).min() > 0.99999


def test_a_part_of_the_trunk_is_frozen_by_timms_name(timm):
    model = get_model("timm:resnet18", 8)
    freeze(model, ["conv1", "layer1"])
    still = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert still and all(key.startswith(("convnet.conv1.", "convnet.layer1.")) for key in still)
    assert "convnet.layer1.1.conv2.weight" in still and model.bn.weight.requires_grad
