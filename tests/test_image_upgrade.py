"""An upgrade on a folder of images: what an old model says of itself, and who may ask it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.old_models import tool
from support.pictures import picture

from bct.config import load_config
from bct.data.label_map import new_to_old
from bct.errors import BctError
from bct.method import Method, load_method
from bct.models.weights import load_backbone
from bct.old_model import OldModel
from bct.train import train

CPU = torch.device("cpu")
NAMES = ["b", "a10", "a9", "c"]  # sorted: a10, a9, b, c


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """4 classes of 5 images; the old model has seen two of them, in the order a9, b."""
    home = tmp_path_factory.mktemp("upgrade")
    for label, name in enumerate(NAMES):
        (home / "all" / name).mkdir(parents=True)
        for k in range(5):
            Image.fromarray(picture(label, k, 32)).save(home / "all" / name / f"{k}.png")
    for name in ("a9", "b"):
        shutil.copytree(home / "all" / name, home / "half" / name)
    common = (
        "from easydict import EasyDict\nconfig = EasyDict()\nconfig.network = 'conv4_w32'\n"
        "config.embedding_size = 8\nconfig.image_size = 28\nconfig.pixels = 'imagenet'\n"
        "config.augment = 'shift'\nconfig.amp = 'off'\nconfig.batch_size = 4\n"
        "config.num_epoch = 2\nconfig.num_workers = 0\nconfig.frequent = 1\n"
        f"config.feature_save = {str(home / 'features')!r}\nconfig.head = 'softmax'\n"
    )
    half, whole = home / "half", home / "all"
    (home / "old_class50.py").write_text(
        f"{common}config.rec = {str(half)!r}\nconfig.output = {str(home / 'old')!r}\n"
    )
    (home / "new.py").write_text(
        f"{common}config.rec = {str(whole)!r}\nconfig.output = {str(home / 'new')!r}\n"
        "config.scenario = 'EXclass'\nconfig.old_config = 'old_class50'\n"
    )
    assert train(load_config(home / "old_class50.py"), Method, CPU) == 0
    tool("extract_features", home / "old_class50.py", "--SD", "old_class100", f"rec={whole}")
    return home


@pytest.fixture
def own(built, tmp_path):
    """A copy of it to spoil; the artefacts' manifests name the copy's old model."""
    shutil.copytree(built, tmp_path / "own")
    for file in (tmp_path / "own").rglob("*"):
        if file.suffix in (".json", ".py"):
            file.write_text(file.read_text().replace(str(built), str(tmp_path / "own")))
    return tmp_path / "own"


def old_model(home, *overrides):
    cfg = load_config(home / "new.py", list(overrides))
    faces = Method.data(cfg)
    cfg.num_classes = faces.num_classes
    return OldModel(cfg, faces, ("old_embedding",))


def test_model_json_says_what_evaluation_needs(built):
    said = json.loads((built / "old" / "model.json").read_text())
    assert said["class_names"] == ["a9", "b"] and said["embedding_size"] == 8
    assert said["view"] == {"size": 28, "crop": "shift", "mirror": False, "pixels": "imagenet"}


def test_labels_are_matched_by_the_names_of_the_classes(built):
    assert old_model(built).new_to_old().tolist() == [-1, 0, 1, -1]  # a10, a9, b, c


def test_bct_asks_the_old_classifier_by_its_own_labels(built):
    """a9 and b are classes 1 and 2 of the new set, 0 and 1 of the old model."""
    BCT = load_method("BCT")
    given = ["influence=old_classifier", f"old_prototype={built}/means.npy"]
    cfg = load_config(built / "new.py", given, BCT.defaults)
    cfg.num_classes = 4
    method = BCT(cfg, old_model(built))
    f, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 1])
    weight, bias = old_model(built).classifier()
    z = (f @ weight.t() + bias).log_softmax(1)
    want = -(z[1, 0] + z[2, 1] + z[3, 0]) / 3
    torch.testing.assert_close(method.influence(f, labels), want)


def test_a_map_goes_before_names(own):
    (own / "map.json").write_text("[-1, -1, 1, 0]")
    assert old_model(own, f"n2o_map={own}/map.json").new_to_old().tolist() == [-1, -1, 1, 0]
    (own / "map.json").write_text("[-1, -1, 2, 0]")
    with pytest.raises(BctError):
        old_model(own, f"n2o_map={own}/map.json").new_to_old()


def test_names_on_one_side_only_ask_for_a_map(own):
    said = json.loads((own / "old" / "model.json").read_text())
    (own / "old" / "model.json").write_text(json.dumps({**said, "class_names": None}))
    with pytest.raises(BctError, match="the old model has no names"):
        old_model(own).new_to_old()


def test_the_classifier_has_a_row_per_class(own):
    weight, bias = old_model(own).classifier()
    assert weight.shape == (2, 8) and bias.shape == (2,)
    said = json.loads((own / "old" / "model.json").read_text())
    (own / "old" / "model.json").write_text(
        json.dumps({**said, "num_classes": 3, "class_names": ["a9", "b", "c"]})
    )
    with pytest.raises(BctError, match=r"2 rows, its model.json says 3 classes"):
        old_model(own).classifier()


def test_the_old_network_is_frozen_and_nobodys_child(built):
    method = Method(load_config(built / "new.py"), old_model(built))
    network = method.old.network()
    method.network = network
    images = torch.randn(3, 3, 28, 28, requires_grad=True)
    embedding = network(images)
    assert not embedding.requires_grad and not method.state_dict() and not list(method.parameters())
    want = load_backbone(built / "old" / "model.pt")(images)
    torch.testing.assert_close(embedding, want.detach(), atol=1e-4, rtol=1e-4)
    assert torch.equal(network(images), embedding)  # batch statistics would have moved on
    stored = np.load(built / "features" / "EXclass" / "old_class100_feature.npy")
    assert stored.shape == (20, 8) and np.isfinite(stored).all()


def test_a_network_that_sees_other_images_is_refused(built):
    with pytest.raises(BctError, match="sees images of 28 pixels, this training of 32"):
        old_model(built, "image_size=32").network()


def test_a_width_the_method_can_not_compare(built):
    for overrides in (["embedding_size=9"], ["dimensions=leading"]):
        with pytest.raises(BctError, match="dimensions"):
            train(load_config(built / "new.py", overrides), needing(), CPU)
    assert not (built / "new").exists()


def needing():
    class Needing(Method):
        @classmethod
        def needs(cls, cfg):
            return ("old_embedding",)

    return Needing


def test_statistics_freeze_half_way(own):
    """In the second half batch norms keep their statistics while the weights go on."""
    states = []

    class Watching(Method):
        @classmethod
        def backbone(cls, cfg, old, dtype):
            cls.network = super().backbone(cfg, old, dtype)
            return cls.network

        def forward(self, *arguments):
            states.append({k: v.clone() for k, v in self.network.state_dict().items()})
            return super().forward(*arguments)

    cfg = load_config(own / "old_class50.py", [f"output={own}/f", "freeze_statistics_at=0.5"])
    train(cfg, Watching, CPU)
    last = torch.load(own / "f" / "model.pt", weights_only=True)
    middle = states[len(states) // 2]
    means = [key for key in middle if key.endswith("running_mean")]
    weights = [key for key in middle if key.endswith("weight") and middle[key].dim() == 4]
    assert all(torch.equal(middle[key], last[key]) for key in means)
    assert not any(torch.equal(states[0][key], middle[key]) for key in means)
    assert not any(torch.equal(middle[key], last[key]) for key in weights)


def test_no_head_classifies_nothing(own):
    cfg = load_config(own / "old_class50.py", [f"output={own}/n", "head=none"])
    with pytest.raises(BctError, match="classification term"):
        train(cfg, Method, CPU)


def test_names_of_the_classes_decide():
    assert new_to_old(["a", "b"], ["b", "x"]).tolist() == [-1, 0]


def test_a_network_of_faces_takes_112_pixels_only(own):
    cfg = load_config(own / "old_class50.py", [f"output={own}/n", "network=demo_w16"])
    with pytest.raises(BctError, match="takes images of 112 pixels, image_size is 28"):
        train(cfg, Method, CPU)
    synthetic = ["rec=synthetic", "num_image=8", "num_classes=2", "pixels=face"]
    assert (
        train(load_config(own / "old_class50.py", [*synthetic, f"output={own}/s"]), Method, CPU)
        == 0
    )
