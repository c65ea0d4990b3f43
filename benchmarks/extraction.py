"""Embeddings of a record file on disk: ours, the classic way, and the machine's matrix products.

Ours is tools/extract_features.py. Classic is what is published with these methods: one DataLoader
worker with Pillow and torchvision, the fp32 network in eval mode and contiguous NCHW, nn.Conv2d and
nn.PReLU, a copy of every batch to numpy in a list, all stacked at the end, torch's allocation of
memory. It has a process of its own; both start with opening the records and end with the files on
disk. The limit is the time that a large matrix product takes for as many multiplications as the
network's convolutions and linear layers have, in the precision of ours. Reads
$BCT_SHARED/data/lfw/train.rec if there, else drawn pictures.
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from backbones import get_model
from bct.amp import amp_dtype
from bct.artefacts import artefact_path, open_artefact
from bct.config import load_config
from bct.datasets import RecordFaces
from bct.recordio import Header, RecordWriter
from benchmarks.common import Goal, Row, interleaved, peak_gib, publish, start
from benchmarks.loader import _drawn, _lfw
from benchmarks.training import Apart, classic_network, flops, matrix_products
from tools.extract_features import extract

BATCH, SD = 64, "base_data100"


class Pictures(Dataset):
    """Images float32 (3, 112, 112) in [-1, 1] and labels, one by one; no image is mirrored."""

    def __init__(self, path: Path):
        self.faces = RecordFaces(path)
        normalise = transforms.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
        self.transform = transforms.Compose(
            [transforms.ToPILImage(), transforms.ToTensor(), normalise]
        )

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        data, label = self.faces.payload(index)
        image = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        return self.transform(image), label


def classic(folder: Path, network: str) -> Callable[[], float]:
    """A function that extracts to <folder>/classic.npy and returns its process's peak in GiB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def work() -> float:
        model = get_model(network)
        model.load_state_dict(torch.load(folder / "model.pt"))
        model = classic_network(model).eval().to(device)
        model.amp_dtype = None
        features, labels = [], []
        with torch.no_grad():
            for images, label in DataLoader(Pictures(folder / "train.rec"), BATCH, num_workers=1):
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
    path = artefact_path("old_embedding", cfg.feature_save, "EXdata", SD)
    return lambda: extract(cfg, SD, device, BATCH, force=True), path


def prepare(folder: Path, network: str, images: int) -> None:
    """A record file of so many images, and weights with running statistics of some of them."""
    faces = RecordFaces(_lfw() or _drawn(folder / "drawn.rec"))
    with RecordWriter(folder / "train.rec") as writer:
        for i in range(images):
            data, _ = faces.payload(i)
            writer.write(i, Header(float(i % 8), i), bytes(data))
    torch.manual_seed(0)
    model = get_model(network)
    pictures = Pictures(folder / "train.rec")
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = amp_dtype(load_config("configs/base.py", []), device) or torch.float32
    products, factor = matrix_products(flops(network, images, training=False), dtype, device)
    times = interleaved(
        {"ours": mine, "classic": lambda: peaks.append(theirs()), "limit": products}, repeats
    )
    theirs.close()
    got = torch.from_numpy(np.array(open_artefact(path)[0])).double()
    want = torch.from_numpy(np.load(folder / "classic.npy")).double()
    apart = (1 - F.cosine_similarity(got, want)).max().item()
    assert got.shape == want.shape
    assert apart < (1e-6 if dtype == torch.float32 else 1e-2), apart
    row = Row(
        f"extraction, {network}",
        times["ours"],
        times["classic"],
        [t * factor for t in times["limit"]],
        limit_name="its FLOPs in matrix products",
        unit="images/s",
        items=images,
        gib=peak_gib(),
        goal=goal,
    )
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
