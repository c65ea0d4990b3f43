"""Loading 112x112 faces with one worker: ours, the classic per-image path, and the bare decoder.

Classic is what insightface's MXFaceDataset does, with Pillow in place of mx.image.imdecode: seek,
read and unpack a record, decode, ToPILImage, RandomHorizontalFlip, ToTensor, Normalize per image in
a DataLoader worker, batches of float32 through shared memory. Ours ends at the same float32 batch,
mirrored and normalised on the device (here the CPU). The bare decoder only decodes, in one thread,
into one buffer. Reads $BCT_SHARED/data/lfw/train.rec if there, else drawn pictures.
"""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader

from bct.data.loader import Loader
from bct.data.sets import RecordSet
from benchmarks.classic import ClassicFaces
from benchmarks.common import Goal, Row, in_turn, median, publish, start
from benchmarks.pictures import lfw_or_drawn

BATCH = 128
GOAL = Goal(times=8, share=0.8)


def main() -> None:
    args = start(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = lfw_or_drawn(Path(folder))
        run(args, RecordSet(path), ClassicFaces(path, mirror=True))


def run(args, dataset: RecordSet, classic: ClassicFaces) -> None:
    torch.set_num_threads(1)  # idle OpenMP threads spin, and would take the worker's core
    images, repeats = (512, 2) if args.small else (len(dataset), 5)
    _check(dataset, classic)
    plain = DataLoader(
        classic, BATCH, shuffle=True, num_workers=1, drop_last=True, persistent_workers=True
    )
    ours = Loader(dataset, BATCH, torch.device("cpu"), num_workers=1)
    payloads = [dataset.payload(i)[0] for i in range(images)]
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
    times = in_turn(candidates, repeats)
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
        f"{images} images of {dataset.path.name}, batch {BATCH}; both gave the same images. The "
        f"bare decoder alone is {most:.1f} times as fast as the classic way: no loader that "
        f"decodes with it in one worker can be more, and at {GOAL.share:.0%} of it a loader is "
        f"{GOAL.share * most:.1f} times as fast.",
    )


def _check(dataset: RecordSet, classic: ClassicFaces) -> None:
    """Both have to give the same images, mirrored or not, and labels."""
    assert len(dataset) == len(classic)
    indices = np.linspace(0, len(dataset) - 1, 64).astype(int).tolist()
    loader = Loader(dataset, 64, torch.device("cpu"), num_workers=0, train=False, indices=indices)
    (batch,) = loader.epoch()
    for image, label, index in zip(batch.images, batch.labels, indices, strict=True):
        theirs, their_label = classic[index]
        apart = min((theirs - x).abs().max() for x in (image, image.flip(2)))
        assert apart < 1e-6 and label == their_label  # they round differently


if __name__ == "__main__":
    main()
