"""Training, heads, decoding, extraction and IJB-C scoring on a GPU, in at most ten minutes.

    bash benchmarks/gpu.sh            on a machine with a GPU; keeps the result
    bash benchmarks/gpu.sh --dry      tiny sizes on the CPU, to see that it runs

Ours is what a training of the product does; the classic way is insightface's loop as published
(classic.py). Out of memory is a result. A part that fails or takes too long does not keep the
others from running; what it has measured by then counts.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.io import ImageReadMode, decode_jpeg

from backbones import get_model
from bct.amp import amp_dtype
from bct.command import run_cli
from bct.data.images import to_network
from bct.data.loader import Loader
from bct.data.sets import RecordSet
from bct.errors import BctError
from bct.models.weights import load_backbone
from bct.protocols.scoring import open_set, verification
from bct.protocols.templates import pair_scores
from benchmarks.classic import ClassicFaces, ClassicNetwork
from benchmarks.common import Row, interleaved, peak_gib, publish, start, synchronize
from benchmarks.gpu_part import Part, run
from benchmarks.gpu_training import (
    DIM,
    compiled_training,
    curves,
    faces,
    heads,
    training,
    utilisation,
)
from benchmarks.ijbc import real_size
from benchmarks.pictures import lfw_or_drawn

BATCH, SECONDS = 256, 540  # of all parts together
WORKERS = max(1, min((os.cpu_count() or 1) - 1, 15))


def decoding(part: Part) -> None:
    """JPEG records to normalised batches: the loader's workers, and the device's own decoder."""
    device = part.device
    with tempfile.TemporaryDirectory() as folder:
        records, images, batch = _records(Path(folder), part.small)
        indices = range(images)
        loader = Loader(records, batch, device, num_workers=WORKERS, train=False, indices=indices)
        found: dict[str, torch.Tensor] = {}

        def workers() -> None:
            for item in loader.epoch():
                found.setdefault("ours", item.images)
            synchronize(device)

        def decoder() -> None:
            for first in range(0, images, batch):
                chosen = indices[first : first + batch]
                files = [torch.frombuffer(bytearray(records.payload(i)[0]), dtype=torch.uint8)
                         for i in chosen]  # fmt: skip
                decoded = torch.stack(decode_jpeg(files, ImageReadMode.RGB, device))
                found.setdefault("limit", to_network(decoded.permute(0, 2, 3, 1)))
            synchronize(device)

        times = interleaved({"ours": workers, "limit": decoder}, 2 if part.small else 5)
    levels = (found["ours"] - found["limit"]).abs().mean().item() * 127.5
    if levels > 3:  # decoders round the colours of a JPEG differently, but not by that much
        raise BctError(
            f"the two decoders differ by {levels:.1f} of 255 levels on average",
            "find out which of them is wrong before trusting either figure",
        )
    part.lines.append(
        f"{images:,} images of {records.path.name}, batch {batch}, {WORKERS} workers; the decoders "
        f"differ by {levels:.2f} of 255 levels on average. The limit reads and decodes in the main "
        "process."
    )
    name = f"torchvision's decode_jpeg on {device.type}"
    about = {"unit": "images/s", "items": images}
    part.rows.append(
        Row(
            "JPEG records to batches", times["ours"], limit=times["limit"], limit_name=name, **about
        )
    )


def extraction(part: Part) -> None:
    """JPEG records to embeddings in host memory: ours as tools/extract_features.py, and fp32."""
    device, name = part.device, "demo_w16" if part.small else "r50"
    with tempfile.TemporaryDirectory() as folder:
        records, images, batch = _records(Path(folder), part.small)
        network = get_model(name, DIM).to(device).train()
        with torch.no_grad():  # statistics of untrained layers must fit, or values explode
            for _ in range(3 if part.small else 30):
                network(faces(batch, 1, device).images)
        torch.save(network.state_dict(), f"{folder}/model.pt")
        dtype = amp_dtype(None, device)
        ours = load_backbone(f"{folder}/model.pt", name, dtype).to(device)
        classic = ClassicNetwork(network).eval()
        loader = Loader(
            records, batch, device, num_workers=WORKERS, train=False, indices=range(images)
        )
        classic_loader = DataLoader(
            Subset(ClassicFaces(records.path), range(images)),
            batch,
            num_workers=WORKERS,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            multiprocessing_context="fork",
        )
        out = {}

        @torch.inference_mode()
        def fast() -> None:
            features = np.empty((images, DIM), np.float32)
            for item in loader.epoch():
                features[item.index.cpu().numpy()] = ours(item.images).cpu().numpy()
            out["ours"] = features

        @torch.inference_mode()
        def plain() -> None:
            rows = [classic(x.to(device)).cpu().numpy() for x, _ in classic_loader]
            out["classic"] = np.concatenate(rows)

        times = interleaved({"ours": fast, "classic": plain}, 1 if part.small else 3)
    a, b = out["ours"], out["classic"]
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    if not np.median(cosine) > 0.99:
        raise BctError(
            f"the embeddings of both ways have a median cosine of {np.median(cosine):.4f}",
            "find out which of them is wrong before trusting either figure",
        )
    part.lines.append(
        f"{name} of random weights, {images:,} images, batch {batch}, {WORKERS} workers; cosine of "
        f"the two ways' embeddings: median {np.median(cosine):.5f}, least {cosine.min():.5f}."
    )
    part.rows.append(
        Row(f"extraction, {name}", times["ours"], times["classic"], unit="images/s", items=images)
    )


def _records(folder: Path, small: bool) -> tuple[RecordSet, int, int]:
    """LFW if it is there, else drawn pictures; how many images of it to use; and a batch."""
    records = RecordSet(lfw_or_drawn(folder))
    return records, 64 if small else len(records), 16 if small else BATCH


def ijbc(part: Part) -> None:
    """IJB-C after the embeddings, on this machine's processor; its matrix product on the device."""
    small, device = part.small, part.device
    sizes = (4000, 120, 600, 20_000, 64) if small else (469_375, 3_531, 19_593, 15_658_489, 512)
    features, protocol = real_size(*sizes)
    templates = protocol.item_features(features)
    first, second = (torch.from_numpy(templates[np.unique(side)]) for side in protocol.pairs[:2])

    def one_to_one() -> None:
        rows = protocol.item_features(features)
        verification(pair_scores(rows, rows, *protocol.pairs[:2]), protocol.pairs.genuine)

    def product() -> None:
        (first.to(device) @ second.to(device).T).cpu()

    def one_to_many() -> None:
        open_set(templates, templates, protocol.galleries, protocol.probes)

    times = interleaved({"1:1": one_to_one, "product": product}, 2)
    about = {"limit_name": f"its matrix product on {device.type}, results brought back"}
    part.rows.append(
        Row("IJB-C 1:1, processor", times["1:1"], limit=times["product"], **about, gib=peak_gib())
    )
    times = interleaved({"1:N": one_to_many}, 1)
    part.rows.append(Row("IJB-C 1:N, processor", times["1:N"], gib=peak_gib()))
    part.lines.append(
        f"{sizes[0]:,} images, {len(templates):,} templates, {sizes[3]:,} pairs; GiB here are "
        "the process's."
    )


PARTS: dict[str, tuple[Callable[[Part], None], float]] = {  # and the seconds each may take
    "Use of the matrix units": (utilisation, 45),
    "Training": (training, 180),
    "Loss curves": (curves, 60),
    "PartialFC": (heads, 110),
    "Extraction": (extraction, 45),
    "Decoding": (decoding, 30),
    "IJB-C": (ijbc, 60),
    "Training, compiled": (compiled_training, 300),  # what is left
}


def run_parts(
    parts: dict[str, tuple[Callable[[Part], None], float]],
    device: torch.device,
    small: bool,
    seconds: float,
) -> tuple[list[Part], list[str]]:
    """Runs the parts within so many seconds; returns them, and the names of those that failed.

    Tiny sizes may share the seconds as they like: machines that try them are slow or busy.
    """
    done, failed = [], []
    deadline = time.monotonic() + seconds
    for name, (measure, longest) in parts.items():
        left = deadline - time.monotonic()
        part = Part(name, device, small, max(left if small else min(longest, left), 0.0))
        done.append(part)
        if left < 5:
            part.error = "not begun for lack of time."
            continue
        began = time.perf_counter()
        if not run(part, measure):
            failed.append(name)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return done, failed


def main() -> None:
    args = start(__doc__)
    if not (torch.cuda.is_available() or args.small):
        raise BctError(
            "torch sees no GPU on this machine",
            "run it on one that has, or try it with tiny sizes: bash benchmarks/gpu.sh --dry",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    parts, failed = run_parts(PARTS, device, args.small, SECONDS)
    about = [
        "GiB are what ours takes of the device's memory at most (without a GPU: the process's "
        f"peak). {time.perf_counter() - began:.0f} s in all.",
    ]
    if device.type == "cpu":
        about.append("A dry run without a GPU: the figures mean nothing.")
    if failed:
        about.append(f"**Failed: {', '.join(failed)}.**")
    rows = [row for part in parts for row in part.rows]
    publish(args, rows, "\n\n".join([" ".join(about), *(part.details() for part in parts)]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_cli(main)
