"""Views: how a network sees an image, in training and afterwards.

Workers bring every image to one size, as uint8; mirroring and normalisation happen on the device.
Images of one small size (CIFAR's) travel as they are, and the device resizes them. A view is
written into model.json, so that evaluation shows a network what its training did.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from bct.data.images import SIZE, Size, shape_of

PIXELS = {  # mean and deviation of the network's input, in units of 0..255, per channel
    "face": ((127.5,) * 3, (127.5,) * 3),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "raw": ((0.0,) * 3, (1.0,) * 3),  # of ONNX graphs that normalise
}
CROPS = ("none", "resized", "shift", "person")
AUGMENT = {  # config's word: (crop, mirror)
    "mirror": ("none", True),
    "resized_crop": ("resized", True),
    "shift": ("shift", False),
    "person": ("person", True),
    "none": ("none", False),
}


class View(NamedTuple):
    """size: one side of the network's input, if it is square; else (height, width).

    crop: "none": the whole image, resized if it has another size and is no face;
        "resized": torchvision's RandomResizedCrop in training, afterwards the centre of the image
        at 256/224 of the size, its aspect kept; "shift": in training moved by up to an eighth,
        what is left free repeating the edge; "person": in training moved by up to 10 pixels of a
        height of 256 over black, and a random half of the images loses a rectangle.
    mirror: mirror a random half of the images in training.
    pixels: a key of PIXELS.
    """

    size: Size = SIZE
    crop: str = "none"
    mirror: bool = True
    pixels: str = "face"

    @property
    def aligned(self) -> bool:
        """Whether images must have the size: a face of another one is not aligned."""
        return self.pixels != "imagenet" and self.crop == "none"

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return shape_of(self.size)

    @property
    def entries(self) -> dict[str, Any]:
        """As JSON has it, such as model.json: a size of two sides is a list there."""
        size = self.size if isinstance(self.size, int) else list(self.size)
        return {**self._asdict(), "size": size}

    @property
    def seen(self) -> list[Any]:
        """What counts when a trained network sees an image, as JSON has it."""
        said = self.entries
        return [said["size"], said["crop"], said["pixels"]]


def transform(view: View, train: bool) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 (H, W, 3) of any size -> uint8 (*view.shape, 3). Draws from torch's global stream."""
    from torchvision.transforms import v2  # half a second that faces need not wait for

    whole = v2.Resize(view.shape, antialias=True)
    if view.crop == "resized" and train:
        steps = [v2.RandomResizedCrop(view.shape, antialias=True)]
    elif view.crop == "resized":
        steps = [_covering(view.shape), v2.CenterCrop(view.shape)]
    elif view.crop == "shift" and train:
        steps = [whole, _shifted]
    elif view.crop == "person" and train:
        steps = [whole, v2.RandomCrop(view.shape, _padding(view)), _erasing(view)]
    else:
        steps = [whole]
    chain = v2.Compose(steps)

    def apply(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return chain(pixels).permute(1, 2, 0).numpy()

    return apply


def _covering(shape: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A resize that keeps the aspect: to the least size that covers 256/224 of a shape."""
    from torchvision.transforms import v2

    sides = [round(side * 256 / 224) for side in shape]
    if sides[0] == sides[1]:
        return v2.Resize(sides[0], antialias=True)

    def resize(image: torch.Tensor) -> torch.Tensor:
        factor = max(side / own for side, own in zip(sides, image.shape[-2:], strict=True))
        size = [max(round(factor * own), 1) for own in image.shape[-2:]]
        return v2.functional.resize(image, size, antialias=True)

    return resize


def _shifted(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W), moved by up to an eighth of each side, the edge repeated: of a square
    RandomCrop(padding=side // 8, padding_mode="edge") in a tenth of its time on a small image."""
    for axis in (1, 2):
        side = image.shape[axis]
        move = int(torch.randint(-(side // 8), side // 8 + 1, (1,)))
        image = image.index_select(axis, (torch.arange(side) + move).clamp_(0, side - 1))
    return image


def _padding(view: View) -> int:
    """10 pixels of a height of 256, as re-identification has it; of less as much in proportion."""
    return max(1, round(view.shape[0] * 10 / 256))


def _erasing(view: View) -> Callable[[torch.Tensor], torch.Tensor]:
    """Random erasing (Zhong et al., AAAI 2020, their probability, areas and aspects): what is lost
    becomes 0 once it is normalised, up to the rounding of uint8."""
    from torchvision.transforms import v2

    mean = [round(value) for value in PIXELS[view.pixels][0]]
    return v2.RandomErasing(0.5, scale=(0.02, 0.4), ratio=(0.3, 1 / 0.3), value=mean)


def normalised_as(images: torch.Tensor, pixels: str, wanted: str) -> torch.Tensor:
    """A network's input (B, 3, H, W), normalised by one key of PIXELS, as by another one."""
    if pixels == wanted:
        return images
    (mean, std), (new_mean, new_std) = (
        [torch.tensor(v, device=images.device).view(3, 1, 1) for v in PIXELS[key]]
        for key in (pixels, wanted)
    )
    return (images * std + mean - new_mean) / new_std


def resized(images: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> uint8 (B, *shape, 3), on its device; itself if it has the shape."""
    if images.shape[1:3] == shape:
        return images
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, shape, mode="bilinear", antialias=True)
    return x.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
