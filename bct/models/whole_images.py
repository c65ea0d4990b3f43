"""Whole images of their own aspect, at several sizes: how the standard protocol of Revisited Oxford
and Paris shows them to a network (Radenovic et al., TPAMI 2019).

Their code leaves an image as it is that is smaller, and shrinks what lies in a query's box by as
much as the image around it; here the long side of what is seen has the size, whatever it was.
Images of Oxford and Paris have 1024 pixels as they come.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bct import distributed
from bct.data.image_set import ImageSet
from bct.data.images import to_network
from bct.data.views import PIXELS, resized
from bct.errors import BctError
from bct.log import progress
from bct.rows import unit_rows

SCALES = (1 / math.sqrt(2), 1.0, math.sqrt(2))


class Whole(NamedTuple):
    """size: of the long side, whatever the image has. scales: of the sizes at which it is seen."""

    size: int = 1024
    scales: tuple[float, ...] = SCALES

    @property
    def entries(self) -> list[Any]:
        """What embeddings depend on, as JSON has it."""
        return [self.size, "long", *self.scales]

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The (height, width) at each scale of an image of this height and width."""
        long = [max(1, round(self.size * scale)) for scale in self.scales]
        most = max(height, width)
        return [tuple(max(1, round(n * side / most)) for side in (height, width)) for n in long]


@torch.inference_mode()
def embedded_whole(
    images: ImageSet,
    whole: Whole,
    device: torch.device,
    pixels: str,
    what: str,
    mirror: bool,
    num_workers: int,
    networks: Mapping[str, nn.Module],
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """This rank's images one at a time: (their index, (1,), embeddings by every network, (1, D)).

        e = n( sum over scales s of n( network(image at s) ) )

    float32, n(x) = x / |x|; a scale whose embedding is zeros adds nothing.

    Args:
        pixels: a key of PIXELS. what: name of a progress bar. mirror: see bct.models.embed.
        num_workers: threads that read and decode. networks: in eval mode, on the device, that take
            images of any size.

    Raises BctError for a network that takes images of one size only.
    """
    start, length = distributed.contiguous_share(
        len(images), distributed.rank(), distributed.world_size()
    )
    ahead = _ahead(images, range(start, start + length), num_workers)
    for index, image in progress(ahead, what, length, "image"):
        pixel = torch.from_numpy(np.array(image)).to(device)[None]  # (1, H, W, 3)
        sums: dict[str, np.ndarray] = {}
        for shape in whole.shapes(*pixel.shape[1:3]):
            x = to_network(resized(pixel, shape), None, *PIXELS[pixels])
            for key, network in networks.items():
                rows = _embedding(network, x, key, shape)
                if mirror:
                    rows = rows + _embedding(network, x.flip(3), key, shape)
                sums[key] = sums.get(key, 0) + unit_rows(rows)
        yield np.array([index]), {key: unit_rows(rows) for key, rows in sums.items()}


def _embedding(network: nn.Module, x: torch.Tensor, key: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        output = network(x)
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "shape" not in str(error):
            raise
        raise BctError(
            f"{key} takes no image of {shape[1]}x{shape[0]} pixels: its network is for one size",
            "give a network that pools over the whole image (GeM, average), or leave images "
            "squashed to its own size",
        ) from None
    output = output if torch.is_tensor(output) else output.embedding
    return output.float().cpu().numpy()


def _ahead(
    images: ImageSet, indices: Sequence[int], workers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Images with their index, in order; threads decode the next ones. They wait for a process's
    lock but little: decoders let it go."""
    if not workers:
        yield from ((index, images.image(index)) for index in indices)
        return
    pool, waiting = ThreadPoolExecutor(workers), deque()
    try:
        for index in indices:
            waiting.append((index, pool.submit(images.image, index)))
            if len(waiting) > 2 * workers:
                first, image = waiting.popleft()
                yield first, image.result()
        for first, image in waiting:
            yield first, image.result()
    finally:
        pool.shutdown(cancel_futures=True)
