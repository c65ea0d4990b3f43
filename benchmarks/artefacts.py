"""Class means and credible mask of 5.18 million 512-d embeddings, from disk, within 2 GiB.

Writes the embeddings (10.6 GB, random) to a temporary file first; needs that much free space.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from bct.statistics import class_means, credible_mask
from benchmarks.common import peak_gib, publish, start


def main() -> None:
    args = start(__doc__, training=False)
    images, classes, dim = (20_000, 360, 32) if args.small else (5_179_510, 93_431, 512)
    rng = np.random.default_rng(0)
    labels = np.sort(
        np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        write(path, images, dim, rng)
        features = np.load(path, mmap_mode="r")
        lines = ["| step | seconds | GB/s read |", "|---|---:|---:|"]
        for name, passes, call in (
            ("class means", 1, lambda: class_means(features, labels)),
            ("credible mask", 3, lambda: credible_mask(features, labels, 0.9)),
        ):
            began = time.perf_counter()
            call()
            seconds = time.perf_counter() - began
            rate = passes * features.nbytes / seconds / 1e9
            lines.append(f"| {name} | {seconds:.1f} | {rate:.2f} |")
    lines += [
        "",
        f"{images:,} x {dim} float32, {classes:,} classes. Peak memory {peak_gib():.2f} GiB.",
    ]
    publish(args, "\n".join(lines))


def write(path: Path, images: int, dim: int, rng: np.random.Generator) -> None:
    """Random embeddings in blocks, through a file handle: they do not count as our memory."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (images, dim)}
        )
        block = rng.standard_normal((1 << 15, dim), np.float32)
        for start_row in range(0, images, len(block)):
            file.write(block[: images - start_row].tobytes())
            block += 0.01


if __name__ == "__main__":
    main()
