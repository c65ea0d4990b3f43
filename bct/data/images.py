"""Decoding image files to RGB and bringing batches of them into the network's range."""

import io
import warnings
from functools import cache

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError

SIZE = 112  # aligned faces are SIZE x SIZE
MAX_PIXELS = 1 << 25  # a few bytes can announce an image of any size: 96 MiB as RGB are enough
# Pillow reads many more, and each is more to attack; its PPM is PBM, PGM and PPM
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF")
ALIGN = 'align the faces to that size; for other images set pixels="imagenet", which resizes them'


Size = int | tuple[int, int]  # a network's input: one side of a square, or height and width


def shape_of(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def size_in_words(size: Size) -> str:
    """As messages have it: "224", or "256 x 128"."""
    return str(size) if isinstance(size, int) else " x ".join(map(str, size))


class WrongSize(ValueError):
    """A whole image of another size than asked for."""


def decode(data: bytes | memoryview, out: np.ndarray | None = None) -> np.ndarray:
    """Decodes a JPEG (or PNG, BMP, WebP, GIF, PBM, PGM, PPM) to uint8 RGB (H, W, 3).

    Grey, palette, 1-bit and CMYK images become RGB; of transparent ones the colour is kept.

    Args:
        data: the file's bytes.
        out: optional uint8 (H, W, 3) array to decode into; the image must have exactly its size.

    Raises:
        ValueError: a broken file, one with more than 8 bits per channel, or more than MAX_PIXELS;
            WrongSize, a ValueError, for another size than out's. Nothing is decoded then.
    """
    image = None
    if bytes(data[:2]) == b"\xff\xd8":
        try:
            if out is None:
                _check_size(*simplejpeg.decode_jpeg_header(data)[1::-1])
            image = simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        except (
            ValueError
        ):  # CMYK, stray bytes, a larger image than `out`: Pillow reads it or says why
            image = None
    if image is None:
        image = _decode_with_pillow(data, out)
    if out is None:
        return image
    _check_size(image.shape[1], image.shape[0], out)
    if not np.shares_memory(image, out):
        out[:] = image
    return out


def _decode_with_pillow(data: bytes | memoryview, out: np.ndarray | None) -> np.ndarray:
    try:
        with warnings.catch_warnings():  # of sizes that are refused, and of odd metadata
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
                _check_size(*file.size, out)
                _check_depth(data, file)
                return np.asarray(file.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("it is not an image file: no JPEG, PNG, BMP, WebP, GIF or PPM") from None
    except WrongSize:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = " ".join(str(error).split())[:120]
        raise ValueError(reason or type(error).__name__) from None


def _check_depth(data: bytes | memoryview, file: Image.Image) -> None:
    """Pillow cuts values of some 16-bit images off at 255, and those of others to 8 bits."""
    deep = file.mode[0] in "IF"
    if file.format == "PNG":
        deep |= data[24] > 8
    elif file.format == "PPM" and isinstance(file.tile[0].args, tuple):
        deep |= file.tile[0].args[1] > 255  # (raw mode, largest value)
    if deep:
        raise ValueError("it has more than 8 bits per channel: convert it")


def _check_size(width: int, height: int, out: np.ndarray | None = None) -> None:
    if out is not None and (height, width) != out.shape[:2]:
        raise WrongSize(
            f"the image is {width}x{height}, not {out.shape[1]}x{out.shape[0]} (not aligned?)"
        )
    if width < 1 or height < 1:
        raise ValueError(f"the image is {width}x{height}")
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image is {width}x{height}, more than {MAX_PIXELS} pixels")


def to_network(
    images: torch.Tensor,
    flip: torch.Tensor | None = None,
    mean: tuple[float, ...] = (127.5,) * 3,
    deviation: tuple[float, ...] = (127.5,) * 3,
) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, (x - mean) / deviation, channels_last.

    Args:
        flip: optional bool (B,); these images are mirrored left-right.
        mean, deviation: per channel, in units of 0..255; by default the range becomes [-1, 1].
    """
    if flip is not None and images.device.type == "cpu":  # several times as fast as `where` there
        mirrored = images.clone()
        for i in flip.nonzero().flatten().tolist():
            mirrored[i] = images[i].flip(1)
        images, flip = mirrored, None
    x = images.permute(0, 3, 1, 2)  # already channels_last in memory
    if flip is not None:
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    if len({*mean, *deviation}) == 1:
        return x.float().sub_(mean[0]).div_(deviation[0])
    return x.float().sub_(_channels(mean, x.device)).div_(_channels(deviation, x.device))


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """(1, 3, 1, 1); it travels to the device once."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
