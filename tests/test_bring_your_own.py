"""Every kind of file x every place it may go, as docs/bring_your_own.md has them in its table.

What is taken is compared with what plain torch makes of the file; what is refused says in its
second line what to do instead, and what that line names is there.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.foreign_files import (
    KNOWN,
    PER_CLASS,
    WRITERS,
    D,
    Foreign,
    face_network,
    network_input,
    write_images,
)
from support.old_models import TRAINING, tool

from backbones import get_model
from backbones.basis import BasisNetwork
from bct.config import base_config, load_config
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import ROOT, read_json
from bct.models.model import open_model
from bct.old_model import OldModel
from bct.scenarios import set_name
from bct.stored.artefacts import open_artefact
from bct.training.heads import SoftmaxHead
from bct.training.initial import start_from
from tools import import_features, import_model

SIDES, PIXELS = {"faces": 112, "things": 32}, {"faces": "face", "things": "imagenet"}
PLACES = ("evaluate", "old model", "teacher", "classifier", "init_from", "features")


class No(NamedTuple):
    """A part of what a refusal says is wrong, and what it says to do."""

    what: str
    do: str


_TO_IMPORT = "a network is for tools/import_model.py, a classifier or class centres for its "
_TO_IMPORT += "--classifier"
FOLDER = No(
    "is a folder", "give its files; of a model that is there: tools/extract_features.py --model"
)
WEIGHTS = No("holds a model's weights, not embeddings", _TO_IMPORT)
OF_MODEL = No("is of a model, by its name", _TO_IMPORT)
NONE_KEPT = No(
    "holds no classifier",
    "give that of a softmax model, tools/import_model.py --classifier, or use class means, "
    "tools/average_features.py",
)
CENTRES = No(
    "holds no state_dict",
    "give the network's own weights, model.pt; class centres are for tools/import_model.py "
    "--classifier",
)
HEAD = No(
    "is no backbone of ours",
    "give the network's own weights; a classifier is for tools/import_model.py --classifier",
)
OTHER = No(" 0 are in ", "give weights of the same network, or the network of these weights")
ONNX = No(
    "comes without its classifier",
    "import it with --classifier, or use class means of its embeddings",
)
PROGRAM = No(
    "a program that can't be trained",
    "give the state_dict that it was exported from; as an old model it may stay as it is",
)
SCRIPT = No(
    "a program that runs when it is loaded",
    "where you trust it, name the network torchscript, as of tools/import_model.py; or give its "
    "weights",
)
ARRAY = No(
    "is an array that numpy saved",
    "embeddings are for tools/import_features.py; give the model's own file here",
)
GONE = No(
    "imported without its model",
    "use a method that needs stored embeddings only, such as MixBCT or L2",
)
IMAGE_ROWS = No(
    "has a row for each image, by its name",
    "give class means, ..._avg_feature.npy: tools/import_features.py, then "
    "tools/average_features.py",
)
CLASS_ROWS = No(
    "has a row for each class",
    "call class means ..._avg_feature.npy; a classifier is for tools/import_model.py --classifier",
)
TOO_FEW = No("has 3 rows for 9 images", "store one row for each image, in their order")
MASK = No("not floats (n, D)", "store one row for each item, as floats")
LIST = No(
    "is a text",
    "give a file that torch.save wrote; a list of images is data: rec=, --data or --rec",
)
MAP = No(
    "is a map of embeddings",
    "save its weights for tools/transform_gallery.py: "
    "torch.save(torch.jit.load(FILE).state_dict(), 'model.pt')",
)
JSON = No(
    "is a JSON text",
    "AdvBCT's class centres are for tools/import_features.py; give the model's own file here",
)

YES, ASK, APART = "yes", "yes, `--network torchscript`", "yes, `--classifier`"
RANKS = "yes, all ranks', `--classifier`"
_NETWORK = dict(zip(PLACES, (YES, YES, YES, YES, YES, WEIGHTS), strict=True))
_SCRIPT = dict(zip(PLACES, (ASK, ASK, ASK, ASK, PROGRAM, SCRIPT), strict=True))
_HEAD = dict(zip(PLACES, (HEAD, HEAD, HEAD, RANKS, OTHER, OF_MODEL), strict=True))
_ROWS = dict(zip(PLACES, ("yes, its rows", ARRAY, GONE, IMAGE_ROWS, ARRAY, YES), strict=True))
_FC = dict(zip(PLACES, (TOO_FEW, ARRAY, ARRAY, APART, ARRAY, CLASS_ROWS), strict=True))
_CENTRES = dict.fromkeys(PLACES, JSON) | {"teacher": GONE, "features": YES}
_LIST = dict.fromkeys(PLACES, LIST) | {"evaluate": "yes, as the images, `--data`"}
CELLS: dict[str, dict[str, str | No]] = {
    "ours: `model.pt`": _NETWORK,
    "ours: a model's folder": _NETWORK | {"old model": "yes, as it is", "features": FOLDER},
    "ours: `checkpoints/step_*.pt`": _NETWORK,
    "insightface: `model.pt`, `backbone.pth`": _NETWORK | {"classifier": NONE_KEPT},
    "insightface: `checkpoint_gpu_*.pt`": _NETWORK | {"classifier": RANKS, "features": OF_MODEL},
    "insightface: `rank_*_softmax_weight.pt`": {
        **_HEAD, **dict.fromkeys(("evaluate", "old model", "teacher", "init_from"), CENTRES),
    },
    "insightface: `.onnx`": _NETWORK
    | {"classifier": ONNX, "init_from": PROGRAM, "features": OF_MODEL},
    "MixBCT: `model.pt`": _NETWORK,
    "MixBCT: `softmax_fc_gpu_*.pt`": _HEAD,
    "MixBCT: `*_feature.npy`, `*_label.npy`": _ROWS,
    "MixBCT: `*_credible_ratio_90_feature.npy`": _ROWS
    | {"evaluate": MASK, "features": "yes, with its features"},
    "MixBCT: `*_avg_feature.npy`": _ROWS
    | {"evaluate": TOO_FEW, "classifier": "yes, as class means, `--classifier`"},
    "openBCT: `.pth.tar`": _NETWORK,
    "openBCT: old classifier, `.npy`": _FC,
    "openBCT: old classifier, `.pth`": _HEAD | {"classifier": APART, "features": WEIGHTS},
    "openBCT: `synth_clsfier.npy`": _FC,
    "openBCT, AdvBCT, OpenCompatible: image list": _LIST,
    "BT-2: `.checkpoint` of a backbone": _NETWORK,
    "BT-2: `.checkpoint` of BT²": _NETWORK
    | dict.fromkeys(("evaluate", "old model", "teacher"), "yes, with a `.json`")
    | {"classifier": NONE_KEPT, "init_from": "yes, its body"},
    "BT-2: TorchScript": _SCRIPT,
    "ml-fct: TorchScript of a backbone": _SCRIPT | {"classifier": NONE_KEPT},
    "ml-fct: TorchScript of h(old, side)": _SCRIPT
    | dict.fromkeys(("evaluate", "old model", "teacher", "classifier"), MAP),
    "torchvision: `.pth`": _NETWORK,
    "AdvBCT: `.pth.tar`": _NETWORK,
    "AdvBCT: `*_feat.npy`, `*_label.npy`": _ROWS,
    "AdvBCT: JSON of centres, `*_meta_radius_*`": _CENTRES,
    "AdvBCT: JSON of centres, `*_meta_theta_*`": _CENTRES,
    "AdvBCT: list of people": _LIST,
    "AdvBCT: list of records": _LIST,
    "OpenCompatible: `.pth.tar`": _NETWORK,
}  # fmt: skip


LABELS = np.repeat(np.arange(KNOWN), PER_CLASS)
KINDS = {  # of artefacts, by the ends of their names
    "feature": "old_embedding", "avg_feature": "old_prototype",
    "class_statistics": "class_statistics",
}  # fmt: skip


class Bench:
    """The files of all kinds, each written when it is first asked for, and the two sets of images;
    `plain` is what a network without any code of ours gets to see."""

    def __init__(self, home: Path):
        self.home, self.written, self.brought = home, {}, {}
        arrays = {sees: write_images(home / sees, side) for sees, side in SIDES.items()}
        self.plain = {sees: network_input(arrays[sees], PIXELS[sees]) for sees in SIDES}
        torch.save(face_network().state_dict(), home / "face.pt")

    def file(self, kind: str) -> Foreign:
        if kind not in self.written:
            folder = self.home / f"kind{len(self.written)}"
            folder.mkdir()
            self.written[kind] = WRITERS[kind](folder)
        return self.written[kind]

    def run(self, module, *words: object) -> None:
        before, sys.argv = sys.argv, [module.__name__, *map(str, words)]
        try:
            module.main()
        finally:
            sys.argv = before

    def old_model(self, kind: str) -> Path:
        """The folder of the old model, imported once; a folder of ours is one already."""
        found = self.file(kind)
        if found.files[0].is_dir():
            return found.files[0]
        if kind not in self.brought:
            folder = self.home / f"old{len(self.brought)}"
            network = ["-net", found.network] if found.network else []
            view = view_words("import_model", found) if found.sees == "things" else []
            self.run(import_model, found.files[0], *network, *view, "-o", folder)
            self.brought[kind] = folder
        return self.brought[kind]

    def features(self, kind: str) -> Path:
        """The folder that these features are imported to, once."""
        if (kind, "features") not in self.brought:
            found, folder = self.file(kind), self.home / f"gone{len(self.brought)}"
            files = (*found.files, *found.beside)
            self.run(import_features, *files, "--rec", self.home / "faces", "-o", folder)
            self.brought[kind, "features"] = folder
        return self.brought[kind, "features"]

    def config(self, folder: Path, sees: str, *more: str):
        job = self.home / "job.py"
        job.write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
        network = "demo_w16" if sees == "faces" else "resnet18"
        words = [f"rec={self.home / sees}", f"image_size={SIDES[sees]}", f"network={network}"]
        words += [f"pixels={PIXELS[sees]}", "augment=none", "amp=off", f"embedding_size={D}"]
        return load_config(job, [*words, f"old_model={folder}", *more])

    def opened(self, folder: Path, sees: str, *needs: str) -> OldModel:
        return OldModel(self.config(folder, sees), open_images(self.home / sees), needs)

    def extracted(self, kind: str) -> tuple[Path, str]:
        """An old model's folder with stored features of the images that it is for."""
        folder, sees = self.old_model(kind), self.file(kind).sees
        if (kind, "rows") not in self.brought:
            where = "--model", folder, "--rec", self.home / sees
            tool("extract_features", *where, "amp=off", "num_workers=0")
            self.brought[kind, "rows"] = folder
        return folder, sees


def view_words(tool: str, found: Foreign) -> list[object]:
    size = "--image-size" if tool == "import_model" else "--size"
    return [size, SIDES[found.sees], "--crop", "none", "--pixels", PIXELS[found.sees]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))


def close(got, want) -> None:
    got, want = (torch.as_tensor(x if torch.is_tensor(x) else np.array(x)) for x in (got, want))
    got, want = got.float(), want.float()
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * max(1, want.abs().max())


# ---- the places


def evaluate(bench: Bench, kind: str) -> None:
    """eval/*.py and tools/embed.py open a model so, and embed a set so."""
    found = bench.file(kind)
    if found.role == "images":  # they are what is embedded
        found, images = bench.file("torchvision: `.pth`"), open_images(found.files[0])
        assert images.labels.tolist() == LABELS.tolist()
    else:
        images = open_images(bench.home / found.sees)
    view = {"size": SIDES[found.sees], "crop": "none", "pixels": PIXELS[found.sees]}
    model = open_model(found.files[0], found.network, **(view if found.sees == "things" else {}))
    close(model.embed(images), found.embed(bench.plain[found.sees]))


def old_model(bench: Bench, kind: str) -> None:
    """tools/import_model.py, then tools/extract_features.py: the stored rows."""
    folder, sees = bench.extracted(kind)
    name = set_name(bench.home / sees)
    rows, _ = open_artefact(folder / "features" / f"{name}_feature.npy")
    close(rows, bench.file(kind).embed(bench.plain[sees]))


def teacher(bench: Bench, kind: str) -> None:
    """The network that a method asks during training."""
    found = bench.file(kind)
    if found.role == "features":
        folder = bench.features(kind)
        ends = [end for end in KINDS if list(folder.glob(f"features/faces_train_{end}.npy"))]
        bench.opened(folder, "faces", KINDS[ends[0]]).network()
    folder, sees = bench.extracted(kind)
    network = bench.opened(folder, sees, "old_embedding").network()
    close(network(bench.plain[sees]), found.embed(bench.plain[sees]))


def classifier(bench: Bench, kind: str) -> None:
    found = bench.file(kind)
    if found.role != "network" or len(found.files) > 1:
        folder = bench.home / f"with{len(bench.brought)}"
        bench.run(import_model, bench.home / "face.pt", "-net", "demo_w16", "-o", folder,
                  "--classifier", *found.files)  # fmt: skip
        bench.brought[kind, "classifier"] = folder
        embed = face_network().eval()
    else:
        folder, embed = bench.old_model(kind), found.embed
    old = bench.opened(folder, found.sees)
    old.manifests["old_embedding"] = {"weights": None}
    weight, bias = old.classifier()
    f = embed(bench.plain[found.sees]).detach()
    f = F.normalize(f) if old.classifies_unit() else f
    close(F.linear(f, weight, bias), found.logits(bench.plain[found.sees]))


def init_from(bench: Bench, kind: str) -> None:
    found = bench.file(kind)
    network = found.network or ("demo_w16" if found.sees == "faces" else "resnet18")
    network, _, basis = network.partition("+")
    cfg = bench.config(bench.home, found.sees, f"init_from={found.files[0]}")
    cfg.network = network
    width = D if found.embed is None else found.embed(bench.plain[found.sees]).shape[1]
    if network == "torchscript":
        network = "demo_w16"
    backbone = get_model(network, width)
    if basis:
        backbone = BasisNetwork(get_model(network, 24 + 16), 24, 16, 6)
    start_from(cfg, open_images(bench.home / found.sees), backbone, SoftmaxHead(width, KNOWN))
    with torch.inference_mode():
        body = backbone.eval() if found.body is None else backbone.eval().body
        close(body(bench.plain[found.sees]), (found.body or found.embed)(bench.plain[found.sees]))


def features(bench: Bench, kind: str) -> None:
    """tools/import_features.py: all that it has stored."""
    f = face_network().eval()(bench.plain["faces"]).detach().numpy()
    groups = (f / np.linalg.norm(f, axis=1, keepdims=True)).reshape(KNOWN, PER_CLASS, D)
    centre = groups.mean(axis=1)
    radius = np.linalg.norm(groups - centre[:, None], axis=2).max(axis=1)
    unit = centre / np.linalg.norm(centre, axis=1, keepdims=True)
    angle = np.arccos((groups * unit[:, None]).sum(axis=2).min(axis=1))
    plain_means = f.reshape(KNOWN, PER_CLASS, D).mean(axis=1)
    means = centre if "centres" in kind else plain_means
    want = {
        "feature": f, "label": LABELS, "credible_ratio_90_feature": np.arange(len(f)) % 4 > 0,
        "avg_feature": means / np.linalg.norm(means, axis=1, keepdims=True),
    }  # fmt: skip
    found = sorted((bench.features(kind) / "features").glob("faces_train_*.npy"))
    for file in found:
        end, rows = file.stem.removeprefix("faces_train_"), np.load(file)
        if end == "class_statistics":
            close(rows["centre"], centre)
            name, of = ("angle", angle) if "theta" in kind else ("radius", radius)
            close(rows[name], of)
        else:
            close(rows, want[end])
    assert found


RUN = dict(
    zip(PLACES, (evaluate, old_model, teacher, classifier, init_from, features), strict=True)
)


# ---- the cells


def test_the_table_has_all_kinds():
    assert list(CELLS) == list(WRITERS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", WRITERS)
def test_cell(bench, kind, place):
    cell = CELLS[kind][place]
    if not isinstance(cell, No):
        RUN[place](bench, kind)
        return
    with pytest.raises(BctError) as error:
        RUN[place](bench, kind)
    what, do = str(error.value).splitlines()
    assert cell.what in what and cell.do == do
    refers_to_what_exists(do)


def refers_to_what_exists(do: str) -> None:
    scripts = re.findall(r"(?:tools|eval)/\w+\.py", do)
    for script in scripts:
        assert (ROOT / script).is_file()
    scripts += ["bct/command.py", "tools/import_model.py", "tools/import_features.py"]
    scripts += ["eval/retrieval.py"]
    sources = "".join((ROOT / script).read_text() for script in scripts)
    for option in re.findall(r"--[a-z-]+", do):
        assert f'"{option}"' in sources, option
    for key in re.findall(r"\b(\w+)=", do):
        assert key in base_config(), key


# ---- the page

PAGE = ROOT / "docs" / "bring_your_own.md"


def table() -> str:
    """CELLS as the page has them: what to do instead is numbered in a list below."""
    notes: list[str] = []
    lines = [f"| file | {' | '.join(PLACES)} |", "| --- |" + " --- |" * len(PLACES)]
    for kind, cells in CELLS.items():
        row = [kind]
        for place in PLACES:
            cell = cells[place]
            if isinstance(cell, No):
                notes += [cell.do] if cell.do not in notes else []
                row.append(f"no ({notes.index(cell.do) + 1})")
            else:
                row.append(cell)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *(f"{n}. {note}" for n, note in enumerate(notes, 1))]) + "\n"


def test_the_page_has_the_table():
    assert table() in PAGE.read_text(encoding="utf-8")


def test_the_commands_of_the_page(tmp_path, monkeypatch):
    """As they stand, one after the other, with a smaller network."""
    monkeypatch.chdir(tmp_path)
    for folder in ("dataset/train", "dataset/val", "photos"):
        write_images(Path(folder), 112)
    torch.save(face_network().state_dict(), "backbone.pth")
    mixbct = WRITERS["MixBCT: `*_feature.npy`, `*_label.npy`"](tmp_path)
    for file in (*mixbct.files, *mixbct.beside):
        file.rename(f"x_{file.stem.rpartition('_')[2]}.npy")
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", "").replace(" r50", " demo_w16")
    commands = re.findall(r"^python (.*)$", text.replace("=r50", "=demo_w16"), re.M)
    assert len(commands) > 8
    for command in commands:
        script, *words = shlex.split(command)
        words = [str(ROOT / w) if w.startswith(("configs/", "methods/")) else w for w in words]
        if "train" in Path(script).stem:
            words += [*TRAINING, f"embedding_size={D}", "num_epoch=1"]
        run(script, words)
    for made in ("prod/model.pt", "new/model.pt", "left/features", "again/model.pt"):
        assert Path("work_dirs", made).exists()
    assert np.load("out.npy").shape == (KNOWN * PER_CLASS, D)


def run(script: str, words: list[str]) -> None:
    before, sys.argv = sys.argv, [script, *words]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        assert not end.code, words
    finally:
        sys.argv = before


def test_a_published_map_of_embeddings(bench):
    """What the refusal of TorchScript of h advises."""
    script = torch.jit.load(bench.file("ml-fct: TorchScript of h(old, side)").files[0])
    torch.save(script.state_dict(), bench.home / "model.pt")
    old, side = torch.randn(5, D), torch.randn(5, 8)
    for name, rows in (("old", old), ("side", side)):
        np.save(bench.home / f"{name}.npy", rows.numpy())
    words = ("old.npy", "mapped.npy", "-m", "model.pt", "--side", "side.npy")
    places = [w if w.startswith("-") else str(bench.home / w) for w in words]
    run("tools/transform_gallery.py", places)
    want = script.eval()(old[:, :, None, None], side[:, :, None, None]).flatten(1).detach()
    close(np.load(bench.home / "mapped.npy"), want)


def test_a_checkpoint_and_the_centres_of_advbct(bench):
    """In one folder, as the page has it; its methods need no other artefact."""
    folder, faces = bench.home / "advbct", bench.home / "faces"
    bench.run(import_model, bench.file("AdvBCT: `.pth.tar`").files[0], "-o", folder)
    assert read_json(folder / "model.json")["network"] == "timm:resnet18"
    files = [bench.file(f"AdvBCT: JSON of centres, `*_meta_{end}_*`").files[0]
             for end in ("radius", "theta")]  # fmt: skip
    bench.run(import_features, *files, "--rec", faces, "--of", faces, "-o", folder)
    table = bench.opened(folder, "faces", "class_statistics").table("class_statistics")
    assert (table["kept"] == PER_CLASS).all() and (table["kept_angles"] == PER_CLASS).all()
    assert table["angle"].isfinite().all() and table["radius"].isfinite().all()
