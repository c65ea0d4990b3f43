"""Files of other systems, tiny, each of exactly the format that the system writes, and of ours.

Every writer takes an empty folder and returns what it has written with what plain torch makes of
images: no code of ours has a part in that, but the networks that only we have (demo_w16).
"""

import json
import struct
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

from backbones import get_model
from bct.config import load_config
from bct.files import write_json
from bct.method import Method
from bct.train import train
from support.bt2 import BT2Basis, BT2ResNet, bt2_checkpoint, trained
from support.networks import settle
from support.pictures import picture

D, KNOWN = 16, 3  # width of the networks for faces, classes
SIDE = 32  # of images of things
PER_CLASS = 3


# ---- networks and writers of single systems


def openbct(path, prefix, classes=5, **extra):
    """A checkpoint as its training leaves one; returns the model."""
    torch.manual_seed(0)
    model = trained(torchvision.models.resnet18(weights=None, num_classes=classes))
    saved = model.state_dict() | extra
    saved = {prefix + key: value for key, value in saved.items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    torch.save(
        {"epoch": 3, "arch": "resnet18", "state_dict": saved, "best_acc1": torch.tensor(12.5),
         "optimizer": optimizer.state_dict()},
        path,
    )  # fmt: skip
    return model


def save_script(model, path, *example):
    """TorchScript of a network; example: what it takes, if not images of 32 x 32."""
    example = example or (torch.zeros(2, 3, SIDE, SIDE),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, which is not what is tested
        torch.jit.trace(model, example).save(str(path))


# ---- images


def write_images(folder: Path, side: int) -> np.ndarray:
    """A folder of class folders; its images in its order, uint8 (n, side, side, 3)."""
    images = []
    for label in range(KNOWN):
        (folder / f"n{label:08}").mkdir(parents=True)
        for variant in range(PER_CLASS):
            images.append(picture(label, variant, side))
            Image.fromarray(images[-1]).save(folder / f"n{label:08}" / f"{variant}.png")
    return np.stack(images)


def network_input(images: np.ndarray, pixels: str) -> torch.Tensor:
    """Float (n, 3, H, W), normalised by hand."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()
    if pixels == "face":
        return x / 127.5 - 1
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406),
                                                         (0.229, 0.224, 0.225)))  # fmt: skip
    return (x / 255 - mean) / std


# ---- what each system writes

ROLES = ("network", "classifier", "features", "images")
Images = Callable[[torch.Tensor], torch.Tensor]


class Foreign(NamedTuple):
    """What a system has left.

    role: what it is, see ROLES.
    files: as they are given to a tool, the one that is meant first.
    network: the name that it needs. sees: "faces" or "things", the images it is for.
    embed, logits: of a network's input (n, 3, H, W), by plain torch; None where it has none.
    beside: files that belong to the first one, but are not meant.
    body: what init_from takes of it, if not the whole network.
    """

    role: str
    files: tuple[Path, ...]
    network: str | None = None
    sees: str = "faces"
    embed: Images | None = None
    logits: Images | None = None
    beside: tuple[Path, ...] = ()
    body: Images | None = None


def plain(network: nn.Module) -> Images:
    network.eval()
    return torch.inference_mode()(lambda x: network(x))


def face_network() -> nn.Module:
    """The one of all systems for faces, as if trained."""
    torch.manual_seed(0)
    return settle(get_model("demo_w16", D))


def centres() -> torch.Tensor:
    """Class centres (KNOWN, D) that a margin head has learnt."""
    return torch.randn(KNOWN, D, generator=torch.Generator().manual_seed(1))


def cosine(scale: float, network: nn.Module, rows: torch.Tensor) -> Images:
    return plain(nn.Sequential(network, _Cosine(scale, rows)))


class _Cosine(nn.Module):
    def __init__(self, scale: float, rows: torch.Tensor):
        super().__init__()
        self.scale, self.rows = scale, rows

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        return self.scale * F.cosine_similarity(f[:, None], self.rows[None], dim=2)


def _saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def our_run(folder: Path) -> Path:
    """A real run of one epoch on faces: model.pt, model.json, checkpoints/step_*.pt."""
    write_images(folder / "set", 112)
    (folder / "tiny.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    words = [f"rec={folder / 'set'}", f"output={folder / 'run'}", "head=softmax", "num_workers=0"]
    words += ["network=demo_w16", f"embedding_size={D}", "batch_size=4", "num_epoch=1", "amp=off"]
    assert train(load_config(folder / "tiny.py", words), Method, torch.device("cpu")) == 0
    return folder / "run"


def _of_run(run: Path) -> tuple[Images, Images]:
    """What plain torch makes of its model.pt."""
    state = torch.load(run / "model.pt", weights_only=True)
    head = nn.Linear(D, KNOWN)
    head.load_state_dict({key: state.pop(f"cls_fc.{key}") for key in ("weight", "bias")})
    network = get_model("demo_w16", D)
    network.load_state_dict(state)
    return plain(network), plain(nn.Sequential(network, head))


def our_model(folder: Path) -> Foreign:
    run = our_run(folder)
    return Foreign("network", (run / "model.pt",), None, "faces", *_of_run(run))


def our_folder(folder: Path) -> Foreign:
    run = our_run(folder)
    return Foreign("network", (run,), None, "faces", *_of_run(run))


def our_checkpoint(folder: Path) -> Foreign:
    run = our_run(folder)
    (file,) = (run / "checkpoints").glob("step_*.pt")
    return Foreign("network", (file,), "demo_w16", "faces", *_of_run(run))


def insightface_model(folder: Path) -> Foreign:
    """Its newer model.pt; older ones are the same with module. before each key."""
    network = face_network()
    file = _saved(folder / "model.pt", network.state_dict())
    return Foreign("network", (file,), "demo_w16", "faces", plain(network))


def insightface_checkpoint(folder: Path) -> Foreign:
    """save_all_states of a training on two ranks."""
    network, optimizer = face_network(), {"state": {}, "param_groups": [{"lr": 0.1}]}
    files = []
    for rank, part in enumerate(centres().tensor_split(2)):
        saved = {
            "epoch": 2, "global_step": 40, "state_dict_backbone": network.state_dict(),
            "state_dict_softmax_fc": {"weight": part.clone()}, "state_optimizer": optimizer,
            "state_lr_scheduler": {"last_epoch": 40, "base_lrs": [0.1]},
        }  # fmt: skip
        files.append(_saved(folder / f"checkpoint_gpu_{rank}.pt", saved))
    logits = cosine(64, network, centres())
    return Foreign("network", tuple(files), "demo_w16", "faces", plain(network), logits)


def insightface_centres(folder: Path) -> Foreign:
    parts = centres().tensor_split(2)
    names = (f"rank_{rank}_softmax_weight.pt" for rank in range(2))
    files = tuple(_saved(folder / n, p.clone()) for n, p in zip(names, parts, strict=True))
    return Foreign("classifier", files, "demo_w16", logits=cosine(64, face_network(), centres()))


def insightface_onnx(folder: Path) -> Foreign:
    """As torch2onnx.py leaves it: opset 11, input "data", a batch of any size said afterwards."""
    network, file = face_network(), folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, which is not what is tested
        torch.onnx.export(network, (torch.zeros(1, 3, 112, 112),), str(file), dynamo=False,
                          opset_version=11, input_names=["data"], verbose=False)  # fmt: skip
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "None"
    onnx.save(model, file)
    return Foreign("network", (file,), None, "faces", plain(network))


def mixbct_model(folder: Path) -> Foreign:
    """Of train_old.py with softmax."""
    network, fc = face_network(), nn.Linear(D, KNOWN)
    head = {f"cls_fc.{key}": value for key, value in fc.state_dict().items()}
    file = _saved(folder / "model.pt", network.state_dict() | head)
    logits = plain(nn.Sequential(network, fc))
    return Foreign("network", (file,), "demo_w16", "faces", plain(network), logits)


def mixbct_centres(folder: Path) -> Foreign:
    parts = centres().tensor_split(2)
    names = (f"softmax_fc_gpu_{rank}.pt" for rank in range(2))
    files = tuple(
        _saved(folder / n, {"weight": p.clone()}) for n, p in zip(names, parts, strict=True)
    )
    return Foreign("classifier", files, "demo_w16", logits=cosine(64, face_network(), centres()))


def _rows(images: np.ndarray) -> np.ndarray:
    return plain(face_network())(network_input(images, "face")).numpy()


def _mixbct_files(folder: Path) -> dict[str, Path]:
    """All that its tools write of the faces of write_images."""
    rows = _rows(write_images(folder / "set", 112))
    labels = np.repeat(np.arange(KNOWN), PER_CLASS)
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(KNOWN)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    arrays = {
        "feature": rows, "label": labels, "avg_feature": means.astype(np.float32),
        "credible_ratio_90_feature": np.arange(len(rows)) % 4 > 0,
    }  # fmt: skip
    for end, array in arrays.items():
        np.save(folder / f"f16_w16_softmax_class100_{end}.npy", array)
    return {end: folder / f"f16_w16_softmax_class100_{end}.npy" for end in arrays}


def mixbct_features(folder: Path) -> Foreign:
    files = _mixbct_files(folder)
    return Foreign(
        "features", (files["feature"],), embed=plain(face_network()), beside=(files["label"],)
    )


def mixbct_mask(folder: Path) -> Foreign:
    files = _mixbct_files(folder)
    beside = files["feature"], files["label"]
    return Foreign("features", (files["credible_ratio_90_feature"],), beside=beside)


def mixbct_means(folder: Path) -> Foreign:
    file = _mixbct_files(folder)["avg_feature"]
    logits = _linear(torch.from_numpy(np.load(file)), None)
    return Foreign("features", (file,), logits=logits)


def openbct_checkpoint(folder: Path) -> Foreign:
    file = folder / "epoch_3_checkpoint.pth.tar"
    model = openbct(file, "module.", classes=KNOWN)
    return Foreign("network", (file,), None, "things", plain(_without_fc(model)), plain(model))


def _without_fc(model: nn.Module) -> nn.Module:
    """torchvision's, ending before its classifier."""
    return nn.Sequential(*[child for name, child in model.named_children() if name != "fc"],
                         nn.Flatten())  # fmt: skip


def openbct_old_npy(folder: Path) -> Foreign:
    np.save(folder / "old_fc.npy", centres().numpy())
    return Foreign("classifier", (folder / "old_fc.npy",), logits=_linear(centres(), None))


def openbct_old_pth(folder: Path) -> Foreign:
    saved = {"fc.weight": centres(), "fc.bias": torch.tensor([0.5, -1.0, 2.0])}
    file = _saved(folder / "old_fc.pth", saved)
    return Foreign(
        "classifier", (file,), "demo_w16", logits=_linear(saved["fc.weight"], saved["fc.bias"])
    )


def openbct_synthetic(folder: Path) -> Foreign:
    """The means of -g: float64, not of length 1."""
    np.save(folder / "synth_clsfier.npy", 0.5 * centres().double().numpy())
    return Foreign(
        "classifier", (folder / "synth_clsfier.npy",), logits=_linear(0.5 * centres(), None)
    )


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Images:
    network = face_network().eval()
    return torch.inference_mode()(lambda x: F.linear(network(x), weight, bias))


def openbct_list(folder: Path) -> Foreign:
    """Its lines: <path> <label>, found in the folder's train/."""
    write_images(folder / "train", SIDE)
    lines = [f"n{label:08}/{variant}.png {label}\n" for label in range(KNOWN)
             for variant in range(PER_CLASS)]  # fmt: skip
    (folder / "imgnet_train_img_list_for_old.txt").write_text("".join(lines))
    return Foreign("images", (folder / "imgnet_train_img_list_for_old.txt",), sees="things")


def bt2_backbone(folder: Path) -> Foreign:
    torch.manual_seed(0)
    model = settle(BT2ResNet(24, KNOWN, norm=False))
    bt2_checkpoint(folder / "backbone.checkpoint", model, "module.")
    return Foreign(
        "network", (folder / "backbone.checkpoint",), "resnet18_narrow", "things", *_pair(model)
    )


def _pair(model: nn.Module) -> tuple[Images, Images]:
    """Embedding and logits of a network of BT-2, which returns (logits, ..., (n, d, 1, 1))."""

    def embedding(x: torch.Tensor) -> torch.Tensor:
        return model(x)[-1].flatten(1)

    return torch.inference_mode()(embedding), torch.inference_mode()(lambda x: model(x)[0])


def bt2_basis(folder: Path) -> Foreign:
    """With the .json beside it that says what the checkpoint does not keep."""
    torch.manual_seed(0)
    model = settle(BT2Basis(24, 16, 6, 1.5, classes=KNOWN))
    for layer in (model.ortholinear_p, model.ortholinear_old2):  # away from where they begin
        layer.parametrizations.weight.original.data += 0.3 * torch.randn(len(layer.weight), 1)
    bt2_checkpoint(folder / "transfer.checkpoint", model, "module.")
    about = {"network": "resnet18_narrow+basis", "to_add_dim": 6, "C": 1.5}
    write_json(folder / "transfer.json", about)
    file = folder / "transfer.checkpoint"
    return Foreign("network", (file,), "resnet18_narrow+basis", "things", _pair(model)[0],
                   body=_pair(model.resnet)[0])  # fmt: skip


def bt2_script(folder: Path) -> Foreign:
    torch.manual_seed(0)
    model = settle(BT2ResNet(24, KNOWN, norm=False))
    save_script(model, folder / "old.pt")
    return Foreign("network", (folder / "old.pt",), "torchscript", "things", *_pair(model))


def fct_script(folder: Path) -> Foreign:
    """Of a wrapper that gives the feature alone, (n, d, 1, 1)."""
    torch.manual_seed(0)
    model = settle(_Feature(BT2ResNet(24, KNOWN, norm=False)))
    save_script(model, folder / "old.pt")
    embed = plain(nn.Sequential(model, nn.Flatten()))
    return Foreign("network", (folder / "old.pt",), "torchscript", "things", embed)


class _Feature(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.backbone(x)[1]


def fct_map(folder: Path) -> Foreign:
    """h(old, side), as 1x1 convolutions."""
    torch.manual_seed(0)
    model = settle(_Map(D, 8, D))
    save_script(model, folder / "transformation.pt", torch.zeros(2, D, 1, 1),
                torch.zeros(2, 8, 1, 1))  # fmt: skip
    return Foreign("network", (folder / "transformation.pt",), "torchscript", "things")


class _Map(nn.Module):
    def __init__(self, old: int, side: int, new: int, hidden: int = 32):
        super().__init__()
        self.p1 = nn.Sequential(_Layer(old, 2 * old), _Layer(2 * old, 2 * new))
        self.p2 = nn.Sequential(_Layer(side, 2 * side), _Layer(2 * side, 2 * new))
        layers = _Layer(4 * new, hidden), _Layer(hidden, hidden)
        self.mixer = nn.Sequential(*layers, nn.Conv2d(hidden, new, 1))

    def forward(self, old: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        return self.mixer(torch.cat([self.p1(old), self.p2(side)], 1))


class _Layer(nn.Module):
    def __init__(self, wide: int, out: int):
        super().__init__()
        self.conv, self.normalizer = nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalizer(self.conv(x)).relu()


def torchvision_weights(folder: Path) -> Foreign:
    torch.manual_seed(0)
    model = settle(torchvision.models.resnet18(weights=None, num_classes=KNOWN))
    file = _saved(folder / "resnet18-f37072fd.pth", model.state_dict())
    return Foreign(
        "network", (file,), "resnet18", "things", plain(_without_fc(model)), plain(model)
    )


class AdvBCTNetwork(nn.Module):
    """The embedding model of AdvBCT, by its names. timm's plain ResNets are torchvision's."""

    def __init__(self):
        super().__init__()
        self.convnet = torchvision.models.resnet18(weights=None)
        self.convnet.fc = nn.Identity()
        self.projection_dim = nn.Linear(512, D, bias=False)
        self.bn = nn.BatchNorm1d(D)
        self.projection_cls = nn.Linear(D, KNOWN, bias=False)
        # of an adversarial training, with its elastic boundary
        self.discriminator = nn.Sequential()
        self.discriminator.add_module("d_fc1", nn.Linear(D, 100))
        self.discriminator.add_module("d_bn1", nn.BatchNorm1d(100))
        self.discriminator.add_module("d_fc2", nn.Linear(100, 2))
        self.eboundary = nn.Module()
        self.eboundary.weight = nn.Parameter(torch.rand(KNOWN))

    def forward(self, x):
        return self.bn(self.projection_dim(self.convnet(x)))


def advbct_checkpoint(folder: Path, loss: str = "softmax", kind: str = "adv_compatible") -> Foreign:
    """With its optimiser and its config, which is of a class of yacs."""
    torch.manual_seed(0)
    model = settle(AdvBCTNetwork())
    file = folder / "checkpoint_epoch10.pth.tar"
    with missing_class("yacs.config", "CfgNode", dict) as CfgNode:

        def node(values: dict) -> dict:
            made = CfgNode({k: node(v) if isinstance(v, dict) else v for k, v in values.items()})
            made.__dict__ |= {"__immutable__": False, "__deprecated_keys__": set(),
                              "__renamed_keys__": {}, "__new_allowed__": False}  # fmt: skip
            return made

        config = {
            "MODEL": {"ARCH": "resnet18" if kind == "base" else "resnet18_resnet18"},
            "NEW_MODEL": {"ARCH": "swsl_resnet18" if kind == "base" else "resnet18"},
            "TRAIN": {"TYPE": kind, "INPUT_SIZE": 48, "OPTIMIZER": {"BETAS": (0.9, 0.999)}},
            "LOSS": {"TYPE": loss, "SCALE": 20.0, "MARGIN": 0.3},
        }
        saved = {"epoch": 10, "arch": "DistributedDataParallel", "model": model.state_dict(),
                 "optimizer": _stepped(model), "grad_scaler": {}, "config": node(config),
                 "best_acc_cross": np.float64(0.5)}  # fmt: skip
        torch.save(saved, file)
    logits = plain(nn.Sequential(model, model.projection_cls))
    return Foreign("network", (file,), "timm:resnet18", "things", plain(model), logits)


def advbct_features(folder: Path) -> Foreign:
    """<dataset>_<n>_feat.npy, and labels as floats."""
    rows = _rows(write_images(folder / "set", 112))
    files = tuple(folder / f"gldv2_{len(rows)}_{end}.npy" for end in ("feat", "label"))
    for file, array in zip(files, (rows, np.repeat(np.arange(KNOWN), PER_CLASS)), strict=True):
        np.save(file, array.astype(np.float32))
    return Foreign("features", files[:1], embed=plain(face_network()), beside=files[1:])


def advbct_centres(folder: Path) -> Foreign:
    return _advbct_json(folder, "radius_centernorm")


def advbct_angles(folder: Path) -> Foreign:
    return _advbct_json(folder, "theta_centernorm_after1.5iqr")


def _advbct_json(folder: Path, end: str) -> Foreign:
    """Of each class the mean of unit embeddings, and their distances from it or angles with it; of
    three values all are kept. Both are called radius in the file."""
    rows = _rows(write_images(folder / "set", 112))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).reshape(KNOWN, PER_CLASS, D)
    said = {}
    for label, own in enumerate(rows):
        centre = own.mean(axis=0)
        values = np.linalg.norm(own - centre, axis=1)
        if end.startswith("theta"):
            values = np.arccos(np.minimum(own @ centre / np.linalg.norm(centre), 1))
        said[str(label)] = {"center": centre.tolist(), "radius": sorted(values.tolist())}
    file = folder / f"gldv2_{KNOWN * PER_CLASS}_meta_{end}.json"
    file.write_text(json.dumps(said))
    return Foreign("features", (file,), "demo_w16")


def advbct_people(folder: Path) -> Foreign:
    """Market-1501's: <path> <label> <camera> 1."""
    write_images(folder, SIDE)
    lines = [f"n{label:08}/{variant}.png {label} {variant} 1\n" for label in range(KNOWN)
             for variant in range(PER_CLASS)]  # fmt: skip
    (folder / "imlist_label.txt").write_text("".join(lines))
    return Foreign("images", (folder / "imlist_label.txt",), sees="things")


def advbct_records(folder: Path) -> Foreign:
    """MS1M's, beside its train.rec and .idx: <which record, from 0 on> <label>."""
    images = write_images(folder / "set", SIDE)
    files = sorted((folder / "set").rglob("*.png"))
    lines, record, index = [], b"", ""
    # the header of a file: the key behind its last image
    parts = [struct.pack("<IfQQ2f", 2, 0, 0, 0, len(images) + 1, len(images) + KNOWN + 1)]
    for k, file in enumerate(files):
        parts.append(struct.pack("<IfQQ", 0, k // PER_CLASS, k + 1, 0) + file.read_bytes())
        lines.append(f"{k} {k // PER_CLASS}\n")
    for key, part in enumerate(parts):
        index += f"{key}\t{len(record)}\n"
        record += struct.pack("<II", 0xCED7230A, len(part)) + part + bytes(-len(part) % 4)
    (folder / "train.rec").write_bytes(record)
    (folder / "train.idx").write_text(index)
    (folder / "imlist_label.txt").write_text("".join(lines))
    return Foreign("images", (folder / "imlist_label.txt",), sees="things")


class OpenCompatibleNetwork(nn.Module):
    """The embedding model of OpenCompatible, by its names."""

    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet18(weights=None)
        self.backbone.avgpool = _CubicMean()
        self.backbone.fc = nn.Identity()
        self.fc_emb = nn.Linear(512, D)
        self.fc_classifier = nn.Linear(D, KNOWN, bias=False)

    def forward(self, x):
        return self.fc_emb(self.backbone(x))


class _CubicMean(nn.Module):
    def forward(self, x):
        return x.clamp(min=1e-6).pow(3).mean((2, 3), keepdim=True).pow(1 / 3)


def opencompatible_checkpoint(folder: Path) -> Foreign:
    """With its config: a plain object, with paths and numbered levels in it."""
    torch.manual_seed(0)
    model = settle(OpenCompatibleNetwork())
    file = folder / "checkpoint_epoch5.pth.tar"
    with missing_class("parse_config", "ConfigParser", object) as ConfigParser:
        config = ConfigParser()
        config._config = OrderedDict(
            name="new", new_model=OrderedDict(arch="resnet18", emb_dim=D),
            dataset=OrderedDict(img_size=48), loss=OrderedDict(type="softmax", scale=30),
        )  # fmt: skip
        config.resume, config._save_dir = None, Path("saved") / "new" / "models"
        config.log_levels = {0: 30, 1: 20, 2: 10}
        scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}
        saved = {"epoch": 5, "arch": "DistributedDataParallel", "model": model.state_dict(),
                 "best_acc1": 0.5, "optimizer": _stepped(model), "grad_scaler": scaler,
                 "config": config}  # fmt: skip
        torch.save(saved, file)
    logits = plain(nn.Sequential(model, model.fc_classifier))
    return Foreign("network", (file,), "gem_resnet18", "things", plain(model), logits)


def _stepped(model: nn.Module) -> dict:
    """The state of an optimiser that has seen a gradient."""
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer.state_dict()


@contextmanager
def missing_class(module: str, name: str, base: type) -> Iterator[type]:
    """A class of a package that is not installed here, to write files with; it is gone afterwards,
    as for whoever reads them."""
    kind = type(name, (base,), {"__module__": module})
    made = {part: types.ModuleType(part) for part in (module.partition(".")[0], module)}
    setattr(made[module], name, kind)
    before = {part: sys.modules.get(part) for part in made}
    sys.modules.update(made)
    try:
        yield kind
    finally:
        for part, module_before in before.items():
            sys.modules.pop(part)
            if module_before is not None:
                sys.modules[part] = module_before


WRITERS: dict[str, Callable[[Path], Foreign]] = {
    "ours: `model.pt`": our_model,
    "ours: a model's folder": our_folder,
    "ours: `checkpoints/step_*.pt`": our_checkpoint,
    "insightface: `model.pt`, `backbone.pth`": insightface_model,
    "insightface: `checkpoint_gpu_*.pt`": insightface_checkpoint,
    "insightface: `rank_*_softmax_weight.pt`": insightface_centres,
    "insightface: `.onnx`": insightface_onnx,
    "MixBCT: `model.pt`": mixbct_model,
    "MixBCT: `softmax_fc_gpu_*.pt`": mixbct_centres,
    "MixBCT: `*_feature.npy`, `*_label.npy`": mixbct_features,
    "MixBCT: `*_credible_ratio_90_feature.npy`": mixbct_mask,
    "MixBCT: `*_avg_feature.npy`": mixbct_means,
    "openBCT: `.pth.tar`": openbct_checkpoint,
    "openBCT: old classifier, `.npy`": openbct_old_npy,
    "openBCT: old classifier, `.pth`": openbct_old_pth,
    "openBCT: `synth_clsfier.npy`": openbct_synthetic,
    "openBCT, AdvBCT, OpenCompatible: image list": openbct_list,
    "BT-2: `.checkpoint` of a backbone": bt2_backbone,
    "BT-2: `.checkpoint` of BT²": bt2_basis,
    "BT-2: TorchScript": bt2_script,
    "ml-fct: TorchScript of a backbone": fct_script,
    "ml-fct: TorchScript of h(old, side)": fct_map,
    "torchvision: `.pth`": torchvision_weights,
    "AdvBCT: `.pth.tar`": advbct_checkpoint,
    "AdvBCT: `*_feat.npy`, `*_label.npy`": advbct_features,
    "AdvBCT: JSON of centres, `*_meta_radius_*`": advbct_centres,
    "AdvBCT: JSON of centres, `*_meta_theta_*`": advbct_angles,
    "AdvBCT: list of people": advbct_people,
    "AdvBCT: list of records": advbct_records,
    "OpenCompatible: `.pth.tar`": opencompatible_checkpoint,
}
