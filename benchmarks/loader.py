"""Loading 112x112 faces with one worker: ours, the classic per-image path, and the bare decoder.

Classic is what insightface's MXFaceDataset does, with Pillow in place of mx.image.imdecode: seek,
read and unpack a record, decode, ToPILImage, RandomHorizontalFlip, ToTensor, Normalize per image in
a DataLoader worker, batches of float32 through shared memory. Ours ends at the same float32 batch,
mirrored and normalised on the device (here the CPU). The bare decoder only decodes, in one thread,
into one buffer. Reads $BCT_SHARED/data/lfw/train.rec if there, else drawn pictures.
"""

import io
import os
import struct
import tempfile
import time
from collections.abc import Iterable
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
from benchmarks.common import Goal, Row, median, publish, start
from benchmarks.record_index import ClassicRecords

BATCH = 128
GOAL = Goal(times=8, share=0.8)


class Classic(Dataset):
    """Images float32 (3, H, W) in [-1, 1], a random half of them mirrored, and labels int64."""

    def __init__(self, path: Path):
        self.records = ClassicRecords(path)
        label, data = self._read(0)
        last = int(label[0]) if len(label) > 1 and not data else None
        self.keys = np.arange(1, last) if last else np.array(self.records.keys)
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        label, data = self._read(self.keys[index])
        image = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        return self.transform(image), torch.tensor(int(label[0]))

    def _read(self, key: int) -> tuple[np.ndarray, bytes]:
        """Labels float32 (n,) and the encoded image of a record."""
        payload = self.records.read(key)
        flag, label, _, _ = struct.unpack("<IfQQ", payload[:24])
        if flag == 0:
            return np.float32([label]), payload[24:]
        return np.frombuffer(payload, "<f4", flag, 24), payload[24 + 4 * flag :]


def main() -> None:
    args = start(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = _lfw() or _drawn(Path(folder) / "train.rec")
        run(args, RecordFaces(path), Classic(path))


def run(args, faces: RecordFaces, classic: Classic) -> None:
    torch.set_num_threads(1)  # idle OpenMP threads spin, and would take the worker's core
    images, repeats = (512, 2) if args.small else (len(faces), 5)
    _check(faces, classic)
    plain = DataLoader(
        classic, BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True
    )
    ours = Loader(faces, BATCH, torch.device("cpu"), num_workers=1)
    payloads = [faces.payload(i)[0] for i in range(images)]
    buffer = np.empty((112, 112, 3), np.uint8)

    def per_image(batches: Iterable) -> float:
        """Seconds per image after the first batch, which pays for starting the workers."""
        iterator = iter(batches)
        next(iterator)
        began, count = time.perf_counter(), 0
        while count * BATCH < images - 2 * BATCH and next(iterator, None) is not None:
            count += 1
        took = time.perf_counter() - began
        for _ in iterator:  # let the workers finish before the next candidate
            pass
        return took / (count * BATCH)

    def bare() -> float:
        began = time.perf_counter()
        for data in payloads:
            simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
        return (time.perf_counter() - began) / len(payloads)

    candidates = {
        "classic": lambda: per_image(plain),
        "ours": lambda: per_image(ours.epoch()),
        "limit": bare,
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, call in candidates.items():
            took = call()
            if turn:  # the first one warms up
                times[name].append(took)
    row = Row(
        "load faces with one worker",
        **times,
        limit_name="bare decoder",
        unit="images/s",
        goal=GOAL,
    )
    most = median([c / b for c, b in zip(row.classic, row.limit, strict=True)])
    publish(
        args,
        [row],
        f"{images} images of {faces.path.name}, batch {BATCH}; both ways gave the same images. The "
        f"bare decoder alone is {most:.1f} times as fast as the classic way: no loader that "
        f"decodes with it in one worker can be more, and at {GOAL.share:.0%} of it a loader is "
        f"{GOAL.share * most:.1f} times as fast.",
    )


def _check(faces: RecordFaces, classic: Classic) -> None:
    """Both have to give the same images, mirrored or not, and labels."""
    assert len(faces) == len(classic)
    indices = np.linspace(0, len(faces) - 1, 64).astype(int).tolist()
    loader = Loader(faces, 64, torch.device("cpu"), num_workers=0, train=False, indices=indices)
    (batch,) = loader.epoch()
    for image, label, index in zip(batch.images, batch.labels, indices, strict=True):
        theirs, their_label = classic[index]
        apart = min((theirs - x).abs().max() for x in (image, image.flip(2)))
        assert apart < 1e-6 and label == their_label  # they round differently


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
