"""Every kind of file x every place it may go: docs/bring_your_own.md has the table."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.foreign_files import WRITERS, D, Foreign, face_network, network_input, write_images
from support.old_models import tool

from backbones import get_model
from backbones.basis import BasisNetwork
from bct.config import load_config
from bct.data.sets import open_images
from bct.errors import BctError
from bct.models.model import open_model
from bct.old_model import OldModel
from bct.scenarios import set_name
from bct.stored.artefacts import open_artefact
from bct.training.heads import SoftmaxHead
from bct.training.initial import start_from
from tools import import_features, import_model

SIDES, PIXELS = {"faces": 112, "things": 32}, {"faces": "face", "things": "imagenet"}
ENDS = {
    "old_embedding": "_feature",
    "old_prototype": "_avg_feature",
    "class_statistics": "_class_statistics",
}
PLACES = ("evaluate", "old model", "teacher", "classifier", "init_from", "features")


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
    got, want = torch.as_tensor(np.array(got)).float(), torch.as_tensor(np.array(want)).float()
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * max(1, want.abs().max())


# ---- the places


def evaluate(bench: Bench, kind: str) -> None:
    """eval/*.py and tools/embed.py open a model so, and embed a set so."""
    found = bench.file(kind)
    if found.role == "images":
        paths = [open_images(found.files[0]).describe(row) for row in range(9)]
        assert paths == [open_images(bench.home / "things").describe(row) for row in range(9)]
        return
    view = {"size": SIDES[found.sees], "crop": "none", "pixels": PIXELS[found.sees]}
    model = open_model(found.files[0], found.network, **(view if found.sees == "things" else {}))
    close(model.embed(open_images(bench.home / found.sees)), found.embed(bench.plain[found.sees]))


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
        folder, sees = bench.features(kind), found.sees
        kinds = [
            k
            for k in ("old_embedding", "old_prototype", "class_statistics")
            if list(folder.glob(f"features/*{ENDS[k]}.npy"))
        ]
        bench.opened(folder, sees, kinds[0]).network()
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
    cfg = bench.config(bench.home, found.sees, f"init_from={found.files[0]}")
    cfg.network = network
    width = D if found.embed is None else found.embed(bench.plain[found.sees]).shape[1]
    if network == "torchscript":
        network = "demo_w16"
    backbone = (
        get_model(network, width)
        if "+" not in network
        else BasisNetwork(get_model("resnet18_narrow", 24 + 16), 24, 16, 6)
    )
    start = start_from(cfg, open_images(bench.home / found.sees), backbone, SoftmaxHead(width, 3))
    print(start.fit)
    with torch.inference_mode():
        body = backbone.eval() if found.body is None else backbone.eval().body
        close(body(bench.plain[found.sees]), (found.body or found.embed)(bench.plain[found.sees]))


def features(bench: Bench, kind: str) -> None:
    folder = bench.features(kind)
    print(sorted(p.name for p in (folder / "features").iterdir()))


RUN = dict(
    zip(PLACES, (evaluate, old_model, teacher, classifier, init_from, features), strict=True)
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", WRITERS)
def test_cell(bench, kind, place, capfd):
    import time

    s = time.time()
    try:
        RUN[place](bench, kind)
        r = "YES"
    except BctError as e:
        r = str(e).replace(str(bench.home), "H")
    except BaseException as e:
        r = f"!!! {type(e).__name__} {e}"[:300]
    with capfd.disabled():
        print(f"\n## {kind} x {place} ({time.time() - s:.2f}): {r}", flush=True)
