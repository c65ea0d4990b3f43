"""Memory of the embedding loop above its memory map: 762,000 x 2,048 floats within 1 GiB.

The images are one and the same and the network is a look-up, so that only the rows' way is
measured: from the device into the map. GLDv2 has as many images, a ResNet-50 embeddings as wide.
The same of tools/embed.py, whose rows survive a kill, and its time beside the bare loop's.
"""

import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import nn

from backbones import get_model
from bct.data.image_set import ImageSet
from bct.data.loader import Loader
from bct.data.sources import Source
from bct.data.views import View
from bct.models.embed import embed_models, embedded
from bct.models.model import Model
from benchmarks.common import interleaved, spread, start
from tools.embed import embed

WIDTH, CPU = 2048, torch.device("cpu")


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

    def describe(self, index: int) -> str:
        return f"image {index}"


class LookUp(nn.Module):
    """(B, 3, 8, 8) -> (B, WIDTH), made of the first pixel."""

    embedding_size = WIDTH

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1, 0, 0].expand(-1, WIDTH).contiguous()


def anonymous() -> int:
    """Bytes of this process that no file backs, at their highest since the last call."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10


Write = Callable[[Model, Same, Path], np.ndarray]  # embeds the images into a file in a folder


def by_the_loop(model: Model, images: Same, folder: Path) -> np.ndarray:
    return embed_models({"x": model}, images, folder, num_workers=0, batch_size=256)["x"]


def by_the_tool(model: Model, images: Same, folder: Path) -> np.ndarray:
    folder.mkdir()
    with redirect_stdout(StringIO()):
        source = Source(images, False, lambda index: b"%d" % index)
        embed(model, source, folder / "out.npy", CPU, num_workers=0, batch_size=256)
    return np.load(folder / "out.npy", mmap_mode="r")


def look_up(network: nn.Module) -> Model:
    model = Model("look-up", None, "0" * 64, View(size=8))
    model.__dict__["backbone"] = network
    return model


def peak(rows: int, folder: Path, write: Write) -> int:
    """Largest anonymous memory while `rows` rows are written."""
    highest = 0

    class Watched(LookUp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal highest
            highest = max(highest, anonymous())
            return super().forward(x)

    found = write(look_up(Watched()), Same(rows), folder)
    assert found.shape == (rows, WIDTH) and found[5, 7] == found[5, 0] != found[6, 0]
    return max(highest, anonymous())


def memory(rows: int, write: Write) -> str:
    with tempfile.TemporaryDirectory() as folder:
        few = peak(rows // 10, Path(folder) / "few", write)
        many = peak(rows, Path(folder) / "many", write)
    return (
        f"{rows:,} x {WIDTH:,} floats, {rows * WIDTH * 4 / 2**30:.2f} GiB in the map: "
        f"{many / 2**30:.2f} GiB beside it; from a tenth of the rows it grows by "
        f"{(many - few) / 2**20:.1f} MiB."
    )


def times(rows: int, repeats: int) -> str:
    """The tool beside the loop that only fills an array, both with a network that costs something:
    the tool's own work is what a large network leaves the least of."""
    images, network = Same(rows), get_model("conv4_w32", 64).eval()
    view = View(size=32, pixels="imagenet")

    def bare() -> None:
        out = np.empty((rows, 64), np.float32)
        loader = Loader(images, 256, CPU, num_workers=0, train=False, view=view)
        for batch, found in embedded({"x": network}, loader):
            out[batch.index.numpy()] = found["x"]

    def tool() -> None:
        model = Model("conv4", None, "0" * 64, view)
        model.__dict__["backbone"] = network
        with tempfile.TemporaryDirectory() as folder:
            by_the_tool(model, images, Path(folder) / "x")

    found = interleaved({"bare": bare, "tool": tool}, repeats)
    share = [b / t for b, t in zip(found["bare"], found["tool"], strict=True)]
    return (
        f"{rows:,} images of 32 pixels by conv4_w32: {spread(found['tool'])} s with files and "
        f"manifest, the bare loop {spread(found['bare'])} s: {spread(share, 100, 1)} % of its rate."
    )


def main() -> None:
    args = start(__doc__)
    rows = 20_000 if args.small else 762_000
    print(memory(rows, by_the_loop))
    print(f"tools/embed.py: {memory(rows, by_the_tool)}")
    print(f"tools/embed.py: {times(*((2_000, 1) if args.small else (50_000, 5)))}")


if __name__ == "__main__":
    main()
