"""Memory of the embedding loop above its memory map: 762,000 x 2,048 floats within 1 GiB.

The images are one and the same and the network is a look-up, so that only the rows' way is
measured: from the device into the map. GLDv2 has as many images, a ResNet-50 embeddings as wide.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bct.data.image_set import ImageSet
from bct.data.views import View
from bct.models.embed import embed_models
from bct.models.model import Model
from benchmarks.common import start

WIDTH = 2048


class Same(ImageSet):
    """One tiny image, many times."""

    resizable, num_classes = False, 1

    def __init__(self, count: int):
        self.path, self.labels = Path("same"), np.zeros(count, np.int8)
        self.fingerprint = f"same {count}"

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, out: np.ndarray) -> int:
        out[:] = index % 251
        return 0


class LookUp(nn.Module):
    """(B, 3, 8, 8) -> (B, WIDTH), made of the first pixel."""

    embedding_size = WIDTH

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1, 0, 0].expand(-1, WIDTH).contiguous()


def anonymous() -> int:
    """Bytes of this process that no file backs, at their highest since the last call."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10


def peak(rows: int, folder: Path) -> int:
    """Largest anonymous memory while `rows` rows are written."""
    model = Model("look-up", None, "0" * 64, View(size=8))
    highest = 0

    class Watched(LookUp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal highest
            highest = max(highest, anonymous())
            return super().forward(x)

    model.__dict__["backbone"] = Watched()
    found = embed_models({"x": model}, Same(rows), folder, num_workers=0, batch_size=256)["x"]
    assert found.shape == (rows, WIDTH) and found[5, 7] == found[5, 0] != found[6, 0]
    return max(highest, anonymous())


def main() -> None:
    args = start(__doc__)
    rows = 20_000 if args.small else 762_000
    with tempfile.TemporaryDirectory() as folder:
        few = peak(rows // 10, Path(folder) / "few")
        many = peak(rows, Path(folder) / "many")
    print(
        f"{rows:,} x {WIDTH:,} floats, {rows * WIDTH * 4 / 2**30:.2f} GiB in the map: "
        f"{many / 2**30:.2f} GiB beside it; from a tenth of the rows it grows by "
        f"{(many - few) / 2**20:.1f} MiB."
    )


if __name__ == "__main__":
    main()
