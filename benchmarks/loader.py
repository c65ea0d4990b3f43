"""Loading 112x112 faces with one worker: ours, the classic per-image path, and the bare decoder.

Classic: Pillow decode, ToPILImage, RandomHorizontalFlip, ToTensor, Normalize per image in a
DataLoader worker, batches of float32 through shared memory. Ours ends at the same float32 batch,
mirrored and normalised on the device (here the CPU). The bare decoder only decodes, in one thread,
into one buffer. Reads $BCT_SHARED/data/lfw/train.rec if there, else drawn pictures.
"""

import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bct.datasets import RecordFaces
from bct.loader import Loader
from bct.recordio import Header, RecordWriter
from benchmarks.common import interleaved, median, publish, spread, start

BATCH = 128


class Classic(Dataset):
    """What insightface's MXFaceDataset does, with Pillow in place of mx.image.imdecode."""

    def __init__(self, faces: RecordFaces):
        self.faces = faces
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int):
        data, label = self.faces.payload(index)
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return self.transform(image), torch.tensor(label), index


def main() -> None:
    args = start(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        faces = RecordFaces(_lfw() or _drawn(Path(folder) / "train.rec"))
        run(args, faces, 512 if args.small else len(faces))


def run(args, faces: RecordFaces, images: int) -> None:
    torch.set_num_threads(1)  # idle OpenMP threads spin, and would take the worker's core
    classic = DataLoader(
        Classic(faces), BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True
    )
    ours = Loader(faces, BATCH, torch.device("cpu"), num_workers=1)
    buffer = np.empty((112, 112, 3), np.uint8)
    payloads = [faces.payload(i)[0] for i in range(min(images, len(faces)))]
    used: dict[str, list[float]] = {"classic": [], "ours": [], "bare decoder": []}

    def through(name: str, batches) -> None:
        """Rate after the first batch, which pays for starting the workers."""
        iterator = iter(batches)
        next(iterator)
        began, count = time.perf_counter(), 0
        while count * BATCH < images - 2 * BATCH and next(iterator, None) is not None:
            count += 1
        used[name].append(count * BATCH / (time.perf_counter() - began))
        for _ in iterator:  # let the workers finish before the next candidate
            pass

    def bare() -> None:
        began = time.perf_counter()
        for data in payloads:
            simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
        used["bare decoder"].append(len(payloads) / (time.perf_counter() - began))

    candidates = {
        "classic": lambda: through("classic", classic),
        "ours": lambda: through("ours", ours.epoch()),
        "bare decoder": bare,
    }
    interleaved(candidates, repeats=2 if args.small else 5)
    rates = {name: values[1:] for name, values in used.items()}
    classic_rate, bare_rate = median(rates["classic"]), median(rates["bare decoder"])
    rows = [
        f"| {name} | {spread(values, digits=0)} | {median(values) / classic_rate:.2f} | "
        f"{median(values) / bare_rate:.0%} |"
        for name, values in rates.items()
    ]
    head = [
        "| path | images/s, median (min to max) | times classic | of bare decoder |",
        "|---|---|---:|---:|",
    ]
    publish(
        args,
        "\n".join([*head, *rows, "", f"{len(faces)} images of {faces.path.name}, batch {BATCH}."]),
    )


def _lfw() -> Path | None:
    path = Path(os.environ.get("BCT_SHARED", "../shared")) / "data/lfw/train.rec"
    return path if path.is_file() else None


def _drawn(path: Path) -> Path:
    rng = np.random.default_rng(0)
    with RecordWriter(path) as writer:
        for key in range(4096):
            smooth = rng.integers(0, 256, (14, 14, 3), np.uint8)
            image = np.asarray(Image.fromarray(smooth).resize((112, 112), Image.Resampling.BICUBIC))
            writer.write(key, Header(float(key % 64), key), simplejpeg.encode_jpeg(image, 95))
    return path


if __name__ == "__main__":
    main()
