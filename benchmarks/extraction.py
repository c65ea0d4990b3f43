"""Embeddings of a record file on disk: ours, the classic way, and the machine's matrix products.

Ours is tools/extract_features.py. Classic is what is published with these methods: one DataLoader
worker with Pillow and torchvision, the fp32 network in eval mode and contiguous NCHW, nn.Conv2d and
nn.PReLU, a copy of every batch to numpy in a list, all stacked at the end, torch's allocation of
memory. It has a process of its own; both start with opening the records and end with the files on
disk. The limit is the time that a large matrix product takes for as many multiplications as the
network's convolutions and linear layers have, in the precision of ours. Reads
$BCT_SHARED/data/lfw/train.rec if there, else drawn pictures.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from backbones import get_model
from bct.config import load_config
from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header
from bct.data.sets import RecordSet
from bct.stored.artefacts import open_artefact, place_of_sd
from benchmarks.classic import ClassicFaces, ClassicNetwork, flops
from benchmarks.common import Goal, Row, peak_gib, publish, start
from benchmarks.pictures import lfw_or_drawn
from benchmarks.training import Apart, against_products
from tools.extract_features import extract

BATCH, SD = 64, "base_data100"


def classic(folder: Path, network: str) -> Callable[[], float]:
    """A function that extracts to <folder>/classic.npy and returns its process's peak in GiB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def work() -> float:
        model = get_model(network)
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        model = ClassicNetwork(model).eval().to(device)
        dataset, features, labels = ClassicFaces(folder / "train.rec"), [], []
        loader = DataLoader(dataset, BATCH, num_workers=1, multiprocessing_context="fork")
        with torch.no_grad():
            for images, label in loader:
                features.append(model(images.to(device)).cpu().numpy())
                labels.append(label.numpy())
        np.save(folder / "classic.npy", np.vstack(features))
        np.save(folder / "classic_label.npy", np.concatenate(labels))
        return peak_gib()

    return work


def ours(folder: Path, network: str) -> tuple[Callable[[], None], Path]:
    """A function that extracts, and the file it writes."""
    options = [f"network={network}", f"rec={folder / 'train.rec'}", f"output={folder}"]
    options += [f"feature_save={folder / 'ours'}", "shard=data100", "num_workers=1"]
    cfg = load_config("configs/base.py", options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place, weights = place_of_sd(SD, cfg.feature_save), folder / "model.pt"
    work = partial(extract, cfg, weights, network, place, device, BATCH, force=True)
    return work, place.path("old_embedding")


def prepare(folder: Path, network: str, images: int) -> None:
    """A record file of so many images, and weights with running statistics of some of them."""
    dataset = RecordSet(lfw_or_drawn(folder))
    with RecordWriter(folder / "train.rec") as writer:
        for i in range(images):
            data, _ = dataset.payload(i)
            writer.write(i, Header(float(i % 8), i), bytes(data))
    torch.manual_seed(0)
    model = get_model(network)
    pictures = ClassicFaces(folder / "train.rec")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                layer.momentum = None  # plain means
        model.train()(torch.stack([pictures[i][0] for i in range(16)]))
    torch.save(model.state_dict(), folder / "model.pt")


def run(folder: Path, network: str, images: int, repeats: int, goal: Goal) -> tuple[Row, str]:
    prepare(folder, network, images)
    mine, path = ours(folder, network)
    theirs, peaks = Apart(classic, folder, network), []
    candidates = {"ours": mine, "classic": lambda: peaks.append(theirs())}
    work = images * flops(network, training=False)
    about = {"unit": "images/s", "items": images, "goal": goal}
    row = against_products(f"extraction, {network}", work, candidates, repeats, **about)
    theirs.close()
    got = torch.from_numpy(np.array(open_artefact(path)[0])).double()
    want = torch.from_numpy(np.load(folder / "classic.npy")).double()
    apart = (1 - F.cosine_similarity(got, want)).max().item()
    assert got.shape == want.shape
    exact = open_artefact(path)[1]["amp"] == "float32"
    assert apart < (1e-6 if exact else 1e-2), apart
    return row, (
        f"{images} images, batches of {BATCH}, one decoding worker, {torch.get_num_threads()} "
        f"threads. Embeddings of ours and classic: 1 - cosine is {apart:.1e} at most. Peak memory "
        f"of classic {max(peaks):.2f} GiB."
    )


def main() -> None:
    args = start(__doc__)
    plan = ("demo_w32", 96, 1, Goal()) if args.small else ("r18", 256, 3, Goal(times=2.5))
    with tempfile.TemporaryDirectory() as folder:
        row, details = run(Path(folder), *plan)
    publish(args, [row], details)


if __name__ == "__main__":
    main()
