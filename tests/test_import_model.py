"""tools/import_model.py: files as other systems write them become old models. What comes out of the
folder is what was in the file: embeddings, logits, classes; and methods train against it."""

import hashlib
import json
import resource
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from support.bt2 import BT2Basis, bt2_checkpoint, trained
from support.foreign_files import advbct_checkpoint, opencompatible_checkpoint
from support.networks import settle
from support.old_models import CPU, TRAINING, tool
from support.onnx_graphs import graph, own_normalisation
from support.pictures import picture, write_faces
from torch import nn

from backbones import get_model
from bct.config import load_config
from bct.data.sets import RecordSet
from bct.errors import BctError
from bct.method import load_method
from bct.models.about import model_in, view_of_model
from bct.models.weights import load_backbone
from bct.old_model import OldModel
from bct.train import train

D, KNOWN = 16, 3  # width and classes of the old model
COUNTS = [4, 3, 4, 3, 4]  # images of the new training set's classes
FACES = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(3))
FACES = FACES.contiguous(memory_format=torch.channels_last)
IMAGES = FACES[:, :, :32, :32].contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def face():
    """A network for faces, as if trained."""
    torch.manual_seed(0)
    return settle(get_model("demo_w16", D)).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def thing():
    """torchvision's, with a classifier of its own."""
    torch.manual_seed(0)
    network = settle(torchvision.models.resnet18(weights=None, num_classes=KNOWN))
    return network.to(memory_format=torch.channels_last)


def imported(capsys, *words):
    """What an import says, in this process."""
    capsys.readouterr()
    tool("import_model", *words)
    return capsys.readouterr().out


def refused(capsys, word, *words, code=1):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        tool("import_model", *words)
    error = capsys.readouterr().err
    assert end.value.code == code and word in error and len(error.splitlines()) == 2, error


def said(folder):
    return json.loads((folder / "model.json").read_text())


def embeddings(folder, images):
    view = view_of_model(model_in(folder))
    network = load_backbone(model_in(folder), said(folder)["network"], None, False, view.size,
                            view.pixels)  # fmt: skip
    with torch.inference_mode():
        return network(images)


def of_folder(folder, **more):
    """An OldModel of a folder, without artefacts."""
    cfg = load_config("configs/base.py", [f"old_model={folder}", "amp=off"])
    cfg.update(more)
    old = OldModel(cfg, RecordSetOfNames())
    old.manifests["old_embedding"] = {"weights": None}
    return old


class RecordSetOfNames:
    class_names = None


def close(got, want):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 2e-6 * max(1, want.abs().max())


# ---- networks in files of all systems


def ddp(state):
    return {f"module.{key}": value for key, value in state.items()}


WRAPPED = {
    "ours.pt": lambda state: state,
    "backbone.pth": ddp,  # insightface's older ones
    "checkpoint_gpu_0.pt": lambda state: {
        "epoch": 2, "global_step": 9, "state_dict_backbone": state,
        "state_dict_softmax_fc": {"weight": torch.eye(KNOWN, D)},
        "state_optimizer": {"state": {}, "param_groups": []},
    },  # insightface
    "epoch_3.pth.tar": lambda state: {"epoch": 3, "state_dict": ddp(state)},  # openBCT
    "new.checkpoint": lambda state: {"epoch": 5, "model_state_dict": state, "loss": 0.5},  # BT-2
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_a_state_dict_is_written_by_our_names(tmp_path, capsys, face, name):
    torch.save(WRAPPED[name](face.state_dict()), tmp_path / name)
    out = imported(capsys, tmp_path / name, "--network", "demo_w16", "-o", tmp_path / "old")
    state = torch.load(tmp_path / "old" / "model.pt", weights_only=True)
    assert state.keys() == face.state_dict().keys()
    with torch.inference_mode():
        assert torch.equal(embeddings(tmp_path / "old", FACES), face(FACES))
    about = said(tmp_path / "old")
    assert about["view"] == {"size": 112, "crop": "none", "mirror": True, "pixels": "face"}
    assert about["embedding_size"] == D and about["num_classes"] is None
    assert "face pixels, 112 x 112, crop none (as such networks usually do" in out
    record = json.loads((tmp_path / "old" / "import.json").read_text())
    assert record["source"] == str(tmp_path / name) and len(record["sha256"]) == 64
    assert record["files"] == ["model.pt", "model.json"]


def test_torchvision_and_openbct_keep_their_classifier(tmp_path, capsys, thing):
    plain, theirs = tmp_path / "resnet18.pth", tmp_path / "x.pth.tar"
    torch.save(thing.state_dict(), plain)
    torch.save({"arch": "resnet18", "state_dict": ddp(thing.state_dict())}, theirs)
    for words in ((plain, "--network", "resnet18"), (theirs,)):  # which names its network
        folder = tmp_path / words[0].stem
        out = imported(capsys, *words, "-o", folder)
        assert "imagenet pixels, 224 x 224, crop resized (as such networks usually do" in out
        weight, bias = of_folder(folder).classifier()
        with torch.inference_mode():
            close(F.linear(embeddings(folder, IMAGES), weight, bias), thing(IMAGES))
        about = said(folder)
        assert about["num_classes"] == KNOWN and not about["head_unit"] and about["head"]


def test_bt2s_transformation_needs_its_json_no_more(tmp_path, capsys):
    torch.manual_seed(0)
    model = trained(BT2Basis(24, 16, 6, 1.5, classes=7))
    bt2_checkpoint(tmp_path / "transfer.checkpoint", model, "module.")
    words = (tmp_path / "transfer.checkpoint", "--network", "resnet18_narrow+basis")
    words += ("-o", tmp_path / "old", "--image-size", 32)
    refused(capsys, "to_add_dim and C", *words)
    assert not (tmp_path / "old").exists()
    about = {"network": "resnet18_narrow+basis", "to_add_dim": 6, "C": 1.5}
    (tmp_path / "transfer.json").write_text(json.dumps(about))
    out = imported(capsys, *words)
    assert "classifier of 24-d embeddings, the network gives 30: it is left out" in out
    with torch.inference_mode():
        close(embeddings(tmp_path / "old", IMAGES), model(IMAGES)[3])


def test_torchscript_only_if_it_is_called_trusted(tmp_path, capsys):
    torch.manual_seed(0)
    model = settle(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, IMAGES).save(str(tmp_path / "old.pt"))
    to = ("-o", tmp_path / "old")
    refused(capsys, "a program that runs when it is loaded", tmp_path / "old.pt", *to)
    named = (tmp_path / "old.pt", *to, "--network", "torchscript")
    refused(capsys, "does not say how it sees an image", *named)
    imported(capsys, *named, "--image-size", 32, "--pixels", "imagenet", "--classes", 4)
    assert (tmp_path / "old" / "model.pt").read_bytes() == (tmp_path / "old.pt").read_bytes()
    close(embeddings(tmp_path / "old", IMAGES), model(IMAGES).detach())
    assert said(tmp_path / "old")["num_classes"] == 4
    with pytest.raises(BctError, match="holds no classifier"):
        of_folder(tmp_path / "old").classifier()


def test_torchscript_of_one_size_alone(tmp_path, capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    images = FACES[:, :, :16, :16]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, images).save(str(tmp_path / "old.pt"))
    words = (tmp_path / "old.pt", "-o", tmp_path / "old", "--network", "torchscript")
    refused(capsys, "--image-size", *words, "--image-size", 32, "--pixels", "imagenet")
    imported(capsys, *words, "--image-size", 16, "--pixels", "imagenet")
    close(embeddings(tmp_path / "old", images), model(images).detach())


# ---- ONNX


def onnx_of(network, path, size):
    warnings.simplefilter("ignore")
    torch.onnx.export(network, (torch.zeros(1, 3, size, size),), str(path), dynamo=False,
                      input_names=["data"], dynamic_axes={"data": {0: "n"}})  # fmt: skip
    return path


@pytest.mark.filterwarnings("ignore")
def test_onnx_is_copied_and_has_the_size_that_it_says(tmp_path, capsys, face):
    torch.manual_seed(0)
    small = settle(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    for network, size in ((face, 112), (small, 32)):
        images = FACES if size == 112 else IMAGES
        file = onnx_of(network, tmp_path / f"{size}.onnx", size)
        out = imported(capsys, file, "-o", tmp_path / str(size))
        assert f"face pixels, {size} x {size}" in out and f"{size} pixels by the file" in out
        assert (tmp_path / str(size) / "model.onnx").read_bytes() == file.read_bytes()
        close(embeddings(tmp_path / str(size), images), network(images).detach())
        with pytest.raises(BctError, match="comes without its classifier"):
            of_folder(tmp_path / str(size)).classifier()


def test_onnx_that_normalises_itself_is_fed_bytes(tmp_path, capsys):
    """The mean of (x - 127.5) / 100: fed what faces are normalised to, it would be another."""
    graph(tmp_path / "a.onnx", **own_normalisation("Div"))
    assert "raw pixels" in imported(capsys, tmp_path / "a.onnx", "-o", tmp_path / "old")
    assert said(tmp_path / "old")["view"]["pixels"] == "raw"
    bytes_ = (FACES * 50 + 128).clamp(0, 255).round()
    close(embeddings(tmp_path / "old", bytes_), ((bytes_ - 127.5) / 100).mean((2, 3)))
    imported(capsys, tmp_path / "a.onnx", "-o", tmp_path / "face", "--pixels", "face")
    assert said(tmp_path / "face")["view"]["pixels"] == "face"


# ---- classifiers apart


@pytest.fixture
def file(tmp_path, face):
    """The network's file."""
    torch.save(face.state_dict(), tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


def with_classifier(capsys, file, *words):
    folder = file.with_name("with")
    words = (file, "-net", "demo_w16", "-o", folder, "--overwrite", "--classifier", *words)
    imported(capsys, *words)
    old = of_folder(folder)
    return old, *old.classifier()


def test_openbcts_old_fc(tmp_path, capsys, file):
    rows, bias = torch.randn(KNOWN, D), torch.randn(KNOWN)
    np.save(tmp_path / "fc.npy", rows.double().numpy())
    torch.save(rows, tmp_path / "tensor.pth")
    torch.save({"fc.weight": rows, "fc.bias": bias}, tmp_path / "dict.pth.tar")
    for name, its_bias in (("fc.npy", None), ("tensor.pth", None), ("dict.pth.tar", bias)):
        old, weight, found = with_classifier(capsys, file, tmp_path / name)
        assert torch.equal(weight, rows) and old.num_classes() == KNOWN
        assert not old.classifies_unit()
        assert found is None if its_bias is None else torch.equal(found, its_bias)


RANKS = {
    "rank_{}_softmax_weight.pt": lambda rows: rows,  # insightface, older
    "softmax_fc_gpu_{}.pt": lambda rows: {"weight": rows},  # MixBCT
    "checkpoint_gpu_{}.pt": lambda rows: {"epoch": 1, "state_dict_softmax_fc": {"weight": rows}},
}


@pytest.mark.parametrize("name", RANKS)
def test_class_centres_of_ranks_are_joined_by_their_numbers(tmp_path, capsys, file, face, name):
    centres = torch.randn(23, D)
    parts = centres.tensor_split(11)  # rank 10 comes after 9, not after 1
    paths = [tmp_path / name.format(rank) for rank in range(11)]
    for path, part in zip(paths, parts, strict=True):
        torch.save(RANKS[name](part.clone()), path)
    old, weight, bias = with_classifier(capsys, file, *sorted(paths, reverse=True))
    with torch.inference_mode():
        f = face(FACES)
    want = 64 * F.cosine_similarity(f[:, None], centres[None], dim=2)
    close(F.linear(F.normalize(f), weight, bias), want)
    assert old.classifies_unit() and old.num_classes() == 23

    given = (file, "-net", "demo_w16", "-o", tmp_path / "no", "--classifier")
    refused(capsys, "but lies beside the files", *given, *paths[:-1])
    paths[1].rename(tmp_path / "away")
    refused(capsys, "rank 1 are missing", *given, paths[0], *paths[2:])
    (tmp_path / "away").rename(paths[1])
    refused(capsys, "two files of rank 0", *given, paths[0], paths[0])
    refused(capsys, "has 23 rows, but there are 24", *given, *paths, "--classes", 24)
    torch.save(RANKS[name](torch.randn(2, D - 1)), paths[1])
    refused(capsys, "15 and 16 dimensions", *given, *paths)
    shutil.copy(paths[0], tmp_path / "other.pt")
    refused(capsys, "does not say which rank", *given, tmp_path / "other.pt", paths[0])
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_of_ours(tmp_path, capsys, file):
    write_faces(tmp_path / "train.rec", [4, 4, 4])
    for head, extra in (("margin", ["scale=20.0"]), ("softmax", [])):
        (tmp_path / f"{head}.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
        words = [f"rec={tmp_path}", f"output={tmp_path / head}", f"head={head}", *extra, *TRAINING]
        words += ["network=demo_w32", "embedding_size=16", "num_epoch=1"]
        assert train(load_config(tmp_path / f"{head}.py", words), load_method_alone(), CPU) == 0
        (saved,) = (tmp_path / head / "checkpoints").glob("step_*.pt")
        centres = torch.load(saved, weights_only=True)["head"]["weight"]
        old, weight, bias = with_classifier(capsys, file, saved)
        assert old.num_classes() == 3 and old.classifies_unit() == (head == "margin")
        close(weight, 20 * F.normalize(centres) if head == "margin" else centres)
        assert (bias is None) == (head == "margin")


def load_method_alone():
    from bct.method import Method

    return Method


def test_classifiers_that_can_not_be(tmp_path, capsys, file):
    def bad(word, value):
        torch.save(value, tmp_path / "fc.pth")
        given = ("-net", "demo_w16", "-o", tmp_path / "no", "--classifier", tmp_path / "fc.pth")
        refused(capsys, word, file, *given)

    bad("of embeddings of 15 dimensions, the network gives 16", torch.randn(KNOWN, D - 1))
    bad("is not finite", torch.full((KNOWN, D), torch.nan))
    bad("is no classifier", torch.randn(D))
    scaled = (file, "-net", "demo_w16", "-o", tmp_path / "no", "--classifier-scale", 30)
    refused(capsys, "has no --classifier", *scaled, code=2)
    assert not (tmp_path / "no").exists()


# ---- classes


def test_classes_by_number_names_list_or_folder(tmp_path, capsys, file):
    names = ["b b", "a", "ç"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (tmp_path / "names.json").write_text(json.dumps(names))
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(picture(0, 0, 8)).save(tmp_path / "images" / name / "0.png")
    for given, want in (
        ("names.txt", names), ("names.json", names), ("images", sorted(names)), (3, None)
    ):  # fmt: skip
        words = tmp_path / given if want else given
        imported(capsys, file, "-net", "demo_w16", "-o", tmp_path / "old", "--overwrite",
                 "--classes", words)  # fmt: skip
        assert said(tmp_path / "old")["class_names"] == want
        assert said(tmp_path / "old")["num_classes"] == 3
    cars = ["Acura RL Sedan 2012", "BMW M3 2", "Boeing 747"]  # no list of images
    (tmp_path / "names.txt").write_text("\n".join(cars))
    imported(capsys, file, "-net", "demo_w16", "-o", tmp_path / "cars", "--classes",
             tmp_path / "names.txt")  # fmt: skip
    assert said(tmp_path / "cars")["class_names"] == cars
    (tmp_path / "names.txt").write_text("a\nb\na\n")
    given = (file, "-net", "demo_w16", "-o", tmp_path / "no", "--classes")
    refused(capsys, "no list of class names, each once", *given, tmp_path / "names.txt")
    refused(capsys, "nothing/there", *given, tmp_path / "nothing" / "there")


# ---- files and folders


def test_the_scale_that_was_taken_is_said(tmp_path, capsys, file):
    centres = tmp_path / "rank_0_softmax_weight.pt"
    torch.save(torch.eye(KNOWN, D), centres)
    words = file, "--network", "demo_w16", "--classifier", centres, "-o", tmp_path / "old"
    out = imported(capsys, *words)
    assert "3 rows, of unit embeddings, scale 64 (--classifier-scale says otherwise)" in out
    out = imported(capsys, *words, "--classifier-scale", 30, "--overwrite")
    assert "3 rows, of unit embeddings, scale 30 (as given)" in out


def test_a_view_that_is_given_whole_is_as_given(tmp_path, capsys, file):
    view = "--image-size", 112, "--crop", "none", "--pixels", "face"
    out = imported(capsys, file, "--network", "demo_w16", *view, "-o", tmp_path / "old")
    assert "it sees face pixels, 112 x 112, crop none (as given)" in out


def test_old_model_that_is_no_models_folder(tmp_path, file):
    write_faces(tmp_path / "train.rec", COUNTS)
    (tmp_path / "empty").mkdir()
    images = RecordSet(tmp_path / "train.rec")
    cases = ("no", "there is no folder"), ("empty", "holds no model"), (file.name, "is a file, not")
    for name, word in cases:
        more = [f"old_model={tmp_path / name}", f"rec={images.path}"]
        with pytest.raises(BctError, match=word):
            OldModel(load_config("configs/base.py", more), images, ("old_embedding",))


def test_nothing_is_replaced_but_what_an_import_has_written(tmp_path, capsys, file):
    folder = tmp_path / "old"
    words = (file, "-net", "demo_w16", "-o", folder)
    rows = tmp_path / "fc.pth"
    torch.save(torch.randn(KNOWN, D), rows)
    imported(capsys, *words, "--classifier", rows)
    (folder / "features").mkdir()
    (folder / "notes.txt").write_text("mine")
    refused(capsys, "was imported from", *words)
    assert (folder / "classifier.pt").is_file()
    imported(capsys, *words, "--overwrite")
    kept = {"model.pt", "model.json", "import.json", "features", "notes.txt"}
    assert {path.name for path in folder.iterdir()} == kept  # the classifier was of the first one
    (folder / "classifier.pt").write_bytes(b"mine")
    refused(capsys, "holds classifier.pt, which no import.json names", *words, "--overwrite")
    assert (folder / "classifier.pt").read_bytes() == b"mine"
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    refused(capsys, "holds a training run", *words[:3], "-o", run, "--overwrite")


@pytest.mark.filterwarnings("ignore")
def test_an_import_may_be_corrected_from_its_own_folder(tmp_path, capsys):
    torch.manual_seed(0)
    network = settle(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    file, folder = onnx_of(network, tmp_path / "a.onnx", 32), tmp_path / "old"
    imported(capsys, file, "-o", folder)
    imported(capsys, folder / "model.onnx", "-o", folder, "--overwrite", "--classes", 4)
    assert (folder / "model.onnx").read_bytes() == file.read_bytes()
    assert said(folder)["num_classes"] == 4


def test_a_full_disk_leaves_the_import_before(tmp_path, capsys, file):
    folder = tmp_path / "old"
    words = (file, "-net", "demo_w16", "-o", folder)
    imported(capsys, *words, "--classes", 3)
    before = {name: (folder / name).read_bytes() for name in ("model.pt", "model.json")}
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        refused(capsys, "model.pt can't be written", *words, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_networks_that_are_of_no_use(tmp_path, capsys, file, face):
    to = ("-o", tmp_path / "no")
    refused(capsys, "does not exist", tmp_path / "none.pt", *to)
    refused(capsys, "does not say which network", file, *to)
    refused(capsys, "does not fit network demo_w24", file, "-net", "demo_w24", *to)
    state = face.state_dict()
    dead = {k: torch.zeros_like(v) if k.startswith("features.") else v for k, v in state.items()}
    torch.save(dead, tmp_path / "dead.pt")
    refused(capsys, "not finite, or alike", tmp_path / "dead.pt", "-net", "demo_w16", *to)
    refused(capsys, "can't embed images of 40 pixels", file, "-net", "demo_w16", *to,
            "--image-size", 40)  # fmt: skip
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("word", "about"),
    [
        ("does not say how many classes", {}),
        ("does not say how many classes", {"num_classes": None}),
        ("num_classes can't be '3'", {"num_classes": "3"}),
        ("num_classes can't be 0", {"num_classes": 0}),
        ("class_names can't be 'abc'", {"num_classes": 3, "class_names": "abc"}),
        ("class_names can't be ['a']", {"num_classes": 3, "class_names": ["a"]}),
        ("class_names can't be [1, 2]", {"class_names": [1, 2]}),
        ("head_unit can't be 'no'", {"num_classes": 3, "head_unit": "no"}),
        ("network can't be 7", {"num_classes": 3, "network": 7}),
        ("says nothing of a model", []),
    ],
)
def test_a_model_json_by_hand(tmp_path, thing, word, about):
    torch.save(thing.state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(about))
    old = of_folder(tmp_path, scenario="EXclass", num_classes=5)
    for call in (old.classifier, old.new_to_old):
        with pytest.raises(BctError) as error:
            call()
        assert word in str(error.value) and len(str(error.value).splitlines()) == 2


# ---- methods train against what was imported


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory, face):
    """An imported old model with class centres of 3 classes; a set of 5 classes, and its artefacts:
    what tools/make_artefacts.py would run."""
    home = tmp_path_factory.mktemp("upgrade")
    write_faces(home / "set" / "train.rec", COUNTS)
    torch.save(face.state_dict(), home / "backbone.pth")
    for rank, rows in enumerate(torch.randn(KNOWN, D).tensor_split(2)):
        torch.save(rows.clone(), home / f"rank_{rank}_softmax_weight.pt")
    centres = sorted(home.glob("rank_*"))
    tool("import_model", home / "backbone.pth", "-net", "demo_w16", "-o", home / "old",
         "--classifier", *centres)  # fmt: skip
    here = ("--model", home / "old", "--rec", home / "set" / "train.rec")
    tool("extract_features", *here, "amp=off", "num_workers=0")
    for other in ("denoise", "average_features"):
        tool(other, *here)
    (home / "new.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    return home


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("MixBCT", []),
        ("BCT", ["influence=old_classifier", "scenario=EXclass"]),
        ("OpenBCT", ["terms={'cls':1.0,'influence':1.0,'lwf':1.0}", "teacher=view", "fill=missing",
                     "scenario=EXclass"]),
    ],
)  # fmt: skip
def test_methods(upgrade, tmp_path, name, extra):
    method = load_method(name)
    words = [f"old_model={upgrade / 'old'}", f"rec={upgrade / 'set'}", f"output={tmp_path / 'new'}"]
    words += ["network=demo_w32", f"embedding_size={D}", *TRAINING, "num_epoch=1", *extra]
    cfg = load_config(upgrade / "new.py", words, method.defaults)
    assert train(cfg, method, CPU) == 0
    steps = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("loss", 0)) for line in steps)


def test_a_new_model_that_is_not_named(upgrade):
    words = [f"old_model={upgrade / 'old'}", f"rec={upgrade / 'set' / 'train.rec'}"]
    cfg = load_config(upgrade / "new.py", words)
    with pytest.raises(BctError, match="names no new model trained alone") as error:
        OldModel(cfg, RecordSet(cfg.rec), ("new_embedding",))
    assert "set new_model to its folder" in str(error.value)


def test_a_run_depends_on_the_classifier_beside_the_model(upgrade, tmp_path):
    shutil.copytree(upgrade / "old", tmp_path / "old")
    words = [f"old_model={tmp_path / 'old'}", f"rec={upgrade / 'set' / 'train.rec'}"]
    cfg = load_config(upgrade / "new.py", words)
    before = OldModel(cfg, RecordSet(cfg.rec), ("old_embedding",)).fingerprint
    moved = load_config(upgrade / "new.py", [f"old_model={upgrade / 'old'}", words[1]])
    assert OldModel(moved, RecordSet(cfg.rec), ("old_embedding",)).fingerprint == before
    about = said(tmp_path / "old")
    for key, value in (("num_classes", 4), ("class_names", ["a", "b", "c"]), ("head_unit", False)):
        (tmp_path / "old" / "model.json").write_text(json.dumps({**about, key: value}))
        assert OldModel(cfg, RecordSet(cfg.rec), ("old_embedding",)).fingerprint != before, key
    (tmp_path / "old" / "model.json").write_text(json.dumps({**about, "source": "moved"}))
    assert OldModel(cfg, RecordSet(cfg.rec), ("old_embedding",)).fingerprint == before
    torch.save({"weight": torch.randn(KNOWN, D)}, tmp_path / "old" / "classifier.pt")
    assert OldModel(cfg, RecordSet(cfg.rec), ("old_embedding",)).fingerprint != before
    for key, value in (("size", 96), ("crop", "shift"), ("pixels", "imagenet")):
        about["view"] = {**said(upgrade / "old")["view"], key: value}
        (tmp_path / "old" / "model.json").write_text(json.dumps(about))
        with pytest.raises(BctError, match="sees images in another way now"):
            OldModel(cfg, RecordSet(cfg.rec), ("old_prototype",))
    about["view"] = {**said(upgrade / "old")["view"], "mirror": False}  # of its training alone
    (tmp_path / "old" / "model.json").write_text(json.dumps(about))
    OldModel(cfg, RecordSet(cfg.rec), ("old_prototype",))
    torch.save(get_model("demo_w16", D).state_dict(), tmp_path / "old" / "model.pt")
    with pytest.raises(BctError, match="trained anew"):
        OldModel(cfg, RecordSet(cfg.rec), ("old_embedding",))


def test_an_export_beside_a_models_weights_does_not_hide_them(tmp_path):
    """tools/export_onnx.py writes it there."""
    for name in ("model.pt", "model.onnx"):
        (tmp_path / name).write_text(name)
    with pytest.raises(BctError, match=r"holds model.pt and model.onnx"):
        model_in(tmp_path)
    for name in ("model.pt", "model.onnx"):
        (tmp_path / "model.json").write_text(
            json.dumps({"sha256": hashlib.sha256(name.encode()).hexdigest()})
        )
        assert model_in(tmp_path) == tmp_path / name


# ---- AdvBCT and OpenCompatible


def test_advbcts_checkpoint(tmp_path, capsys):
    """Its network, view and classifier by its config; what only its training needs is said."""
    pytest.importorskip("timm")
    found = advbct_checkpoint(tmp_path, loss="arcface")
    out = imported(capsys, found.files[0], "-o", tmp_path / "old")
    assert "discriminator (9 tensors), eboundary (1 tensor), which only training needs" in out
    assert "3 rows, of unit embeddings, scale 20" in out and "48 pixels by the file" in out
    about = said(tmp_path / "old")
    assert about["network"] == "timm:resnet18" and about["num_classes"] == KNOWN
    assert about["head_unit"] and about["view"] == {
        "size": 48, "crop": "none", "mirror": False, "pixels": "imagenet"
    }  # fmt: skip
    assert not {"projection_cls", "discriminator", "eboundary"} & {
        key.partition(".")[0] for key in torch.load(tmp_path / "old" / "model.pt")
    }
    x = torch.randn(2, 3, 48, 48)
    close(embeddings(tmp_path / "old", x), found.embed(x))
    refused(capsys, "holds no network gem_resnet18", found.files[0], "-net", "gem_resnet18",
            "-o", tmp_path / "no")  # fmt: skip
    refused(capsys, "does not exist", tmp_path / "checkpoint_epoch11.pth.tar", "-o", tmp_path / "n")
    assert not (tmp_path / "no").exists()


def test_opencompatibles_checkpoint(tmp_path, capsys):
    found = opencompatible_checkpoint(tmp_path)
    out = imported(capsys, found.files[0], "-o", tmp_path / "old")
    assert "left out" not in out and "3 rows, linear" in out
    about = said(tmp_path / "old")
    assert about["network"] == "gem_resnet18" and about["view"]["mirror"]
    assert (about["view"]["size"], about["view"]["crop"]) == (48, "none")
    x = torch.randn(2, 3, 48, 48)
    close(embeddings(tmp_path / "old", x), found.embed(x))
    close(F.linear(embeddings(tmp_path / "old", x), *of_folder(tmp_path / "old").classifier()),
          found.logits(x))  # fmt: skip
