"""Verification sets in insightface's `.bin` format: loading, and 10-fold accuracy.

A `.bin` is a pickle of (list of 2P encoded images, list of P same-or-not flags); images 2i and
2i + 1 are pair i.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bct import distributed
from bct.data.images import SIZE, decode, to_network
from bct.errors import BctError
from bct.method import embedding_of
from bct.metrics.accuracy import Accuracy, accuracy
from bct.safe.lists import load_lists

_GROWTH, _FREE = 1024, 1 << 28  # how many times its file's size a set may take, beyond 256 MiB
_LONGEST = 16  # an image's longer side, in shorter sides


class VerificationSet(NamedTuple):
    """images uint8 (2P, H, W, 3); issame bool (P,)."""

    name: str
    images: np.ndarray
    issame: np.ndarray

    @property
    def only(self) -> str | None:
        """ "genuine" or "impostor" if all pairs are; accuracy and TAR at FAR then say nothing."""
        if self.issame.all():
            return "genuine"
        return None if self.issame.any() else "impostor"


def load_bin(path: str | Path, size: int = SIZE) -> VerificationSet:
    """Reads a verification set; images of another size have their shorter side resized.

    Raises BctError: missing file, a pickle that asks for anything but arrays and bytes, a broken
    image, counts that do not match.
    """
    path = Path(path)
    if not path.is_file():
        raise BctError(
            f"verification set {path} does not exist", "check val_targets and rec_val, or remove it"
        )
    try:
        encoded, issame = load_lists(path.read_bytes())
    except ValueError as error:
        raise BctError(
            f"{path} is not a verification set ({error})", "use a .bin made by insightface's tools"
        ) from None
    if len(encoded) != 2 * len(issame) or len(issame) == 0:
        raise BctError(
            f"{path} has {len(encoded)} images for {len(issame)} pairs", "write the file again"
        )
    if len(encoded) * size * size * 3 > max(_FREE, _GROWTH * path.stat().st_size):
        raise BctError(
            f"{path} is too small for {len(encoded)} images: it repeats them",
            "use a .bin made by insightface's tools",
        )
    for i, flag in enumerate(issame):
        if not isinstance(flag, bool | int | np.generic) or flag not in (0, 1):
            raise BctError(
                f"{path}: flag {i} says neither same nor different",
                "write the file again",
            )
    images = np.empty((len(encoded), size, size, 3), np.uint8)
    for i, data in enumerate(encoded):
        try:
            images[i] = _fit(decode(_image_bytes(data)), size)
        except ValueError as error:
            raise BctError(
                f"{path}: image {i} is broken ({error})", "write the file again"
            ) from None
    return VerificationSet(path.stem, images, np.array(issame, bool))


def _image_bytes(data: Any) -> bytes:
    if isinstance(data, np.ndarray) and data.dtype.kind in "ui" and data.itemsize == 1:
        return data.tobytes()
    if not isinstance(data, bytes):
        raise ValueError(f"a {type(data).__name__} instead of a file's bytes")
    return data


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image
    from skimage.transform import resize

    scale = size / min(image.shape[:2])
    shape = [round(side * scale) for side in image.shape[:2]]
    if max(shape) > _LONGEST * size:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} is no picture of a face")
    image = np.rint(resize(image, shape, preserve_range=True, anti_aliasing=scale < 1))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[top : top + size, left : left + size].astype(np.uint8)


@torch.inference_mode()
def embed(
    backbone: torch.nn.Module, images: np.ndarray, device: torch.device, batch_size: int = 256
) -> np.ndarray:
    """Embeddings of image plus mirror image, float32 (n, D), not normalised, on every rank.

    Args:
        images: uint8 (n, H, W, 3), the same on all ranks, which share the work.
    """
    backbone.eval()
    start, length = distributed.contiguous_share(
        len(images), distributed.rank(), distributed.world_size()
    )
    parts = []
    for first in range(start, start + length, batch_size):
        block = torch.from_numpy(images[first : min(first + batch_size, start + length)]).to(device)
        mirror = torch.ones(len(block), dtype=torch.bool, device=device)
        both = (backbone(to_network(block, flip)) for flip in (None, mirror))
        parts.append(sum(map(embedding_of, both)))
    return distributed.all_gather_shares(torch.cat(parts), len(images)).cpu().numpy()


def verify(
    backbone: torch.nn.Module, sets: list[VerificationSet], device: torch.device
) -> dict[str, Accuracy]:
    """Accuracy of one model on each set; every rank has to call it and gets the result."""
    results = {}
    for name, images, issame in sets:
        e = embed(backbone, images, device)
        results[name] = accuracy(e[0::2], e[1::2], issame)
    return results
