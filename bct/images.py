"""Decoding image files to RGB and bringing batches of them into the network's range."""

import io

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

SIZE = 112  # aligned faces are SIZE x SIZE


def decode(data: bytes | memoryview, out: np.ndarray | None = None) -> np.ndarray:
    """Decodes a JPEG (or any file Pillow reads) to uint8 RGB (H, W, 3).

    Args:
        data: the file's bytes.
        out: optional uint8 (H, W, 3) array to decode into; the image must have exactly its size.

    Raises:
        ValueError: a broken file or a wrong size.
    """
    image = None
    if bytes(data[:2]) == b"\xff\xd8":
        try:
            image = simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        except (
            ValueError
        ):  # CMYK, stray bytes, a larger image than `out`: Pillow reads it or says why
            image = None
    if image is None:
        try:
            with Image.open(io.BytesIO(data)) as file:
                image = np.asarray(file.convert("RGB"))
        except UnidentifiedImageError:
            raise ValueError("it is not an image file") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(str(error) or type(error).__name__) from None
    if out is None:
        return image
    if image.shape != out.shape:
        height, width = out.shape[:2]
        raise ValueError(
            f"the image is {image.shape[1]}x{image.shape[0]}, not {width}x{height} (not aligned?)"
        )
    if not np.shares_memory(image, out):
        out[:] = image
    return out


def to_network(images: torch.Tensor, flip: torch.Tensor | None = None) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], (x - 127.5) / 127.5, channels_last.

    Args:
        flip: optional bool (B,); these images are mirrored left-right.
    """
    x = images.permute(0, 3, 1, 2)  # already channels_last in memory
    if flip is not None:
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    return x.float().sub_(127.5).div_(127.5)
