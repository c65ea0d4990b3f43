"""Views: how a network sees an image, in training and afterwards.

Workers bring every image to one size, as uint8; mirroring and normalisation happen on the device.
Images of one small size (CIFAR's) travel as they are, and the device resizes them. A view is
written into model.json, so that evaluation shows a network what its training did.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from bct.data.images import SIZE

PIXELS = {  # mean and deviation of the network's input, in units of 0..255, per channel
    "face": ((127.5,) * 3, (127.5,) * 3),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "raw": ((0.0,) * 3, (1.0,) * 3),  # of ONNX graphs that normalise
}
CROPS = ("none", "resized", "shift")
AUGMENT = {  # config's word: (crop, mirror)
    "mirror": ("none", True),
    "resized_crop": ("resized", True),
    "shift": ("shift", False),
    "none": ("none", False),
}


class View(NamedTuple):
    """size: height and width of the network's input.

    crop: "none": the whole image, resized if it has another size and is no face;
        "resized": torchvision's RandomResizedCrop in training, afterwards the centre of the image
        at 256/224 of the size; "shift": in training moved by up to an eighth, what is left free
        repeating the edge.
    mirror: mirror a random half of the images in training.
    pixels: a key of PIXELS.
    """

    size: int = SIZE
    crop: str = "none"
    mirror: bool = True
    pixels: str = "face"

    @property
    def aligned(self) -> bool:
        """Whether images must have the size: a face of another one is not aligned."""
        return self.pixels != "imagenet" and self.crop == "none"


def transform(view: View, train: bool) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 (H, W, 3) of any size -> uint8 (size, size, 3). Draws from torch's global stream."""
    from torchvision.transforms import v2  # half a second that faces need not wait for

    size = (view.size, view.size)
    whole = v2.Resize(size, antialias=True)
    if view.crop == "resized" and train:
        steps = [v2.RandomResizedCrop(size, antialias=True)]
    elif view.crop == "resized":
        steps = [v2.Resize(round(view.size * 256 / 224), antialias=True), v2.CenterCrop(size)]
    elif view.crop == "shift" and train:
        steps = [whole, _shifted]
    else:
        steps = [whole]
    chain = v2.Compose(steps)

    def apply(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return chain(pixels).permute(1, 2, 0).numpy()

    return apply


def _shifted(image: torch.Tensor) -> torch.Tensor:
    """(3, S, S), moved by up to S // 8 each way, the edge repeated: RandomCrop(padding=S // 8,
    padding_mode="edge") in a tenth of its time on a small image."""
    size = image.shape[-1]
    moves = torch.randint(-(size // 8), size // 8 + 1, (2,)).tolist()
    rows, columns = ((torch.arange(size) + move).clamp_(0, size - 1) for move in moves)
    return image[:, rows][:, :, columns]


def normalised_as(images: torch.Tensor, pixels: str, wanted: str) -> torch.Tensor:
    """A network's input (B, 3, H, W), normalised by one key of PIXELS, as by another one."""
    if pixels == wanted:
        return images
    (mean, std), (new_mean, new_std) = (
        [torch.tensor(v, device=images.device).view(3, 1, 1) for v in PIXELS[key]]
        for key in (pixels, wanted)
    )
    return (images * std + mean - new_mean) / new_std


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> uint8 (B, size, size, 3), on its device; itself if it has the size."""
    if images.shape[1:3] == (size, size):
        return images
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
