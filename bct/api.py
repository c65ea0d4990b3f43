"""The public functions of `import bct`, for a notebook or somebody else's program."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from bct.amp import amp_dtype
from bct.data.image_set import ImageSet
from bct.data.sets import open_images
from bct.data.views import PIXELS
from bct.errors import BctError
from bct.method import load_method
from bct.models.embed import embed_models
from bct.models.model import Model, open_model
from bct.protocols.compare import compare
from bct.protocols.image_search import open_search
from bct.protocols.pairs import open_bin
from bct.protocols.protocol import Protocol
from bct.report.write import write_report

__all__ = [
    "compare",
    "embed",
    "load",
    "load_method",
    "open_images",
    "open_protocol",
    "write_report",
]


def load(
    file: str | Path,
    network: str | None = None,
    amp: str | None = None,
    pixels: str | None = None,
) -> Model:
    """A trained network, or stored embeddings.

    Args:
        file: a model.pt with its model.json, weights of insightface, MixBCT, openBCT or BT-2, an
            .onnx file, or an .npy, .npz or .fvecs of embeddings, a row per image.
        network: its name, e.g. "r50", where neither the file nor a model.json says it.
        amp: precision of its body: "bf16", "fp16" or "off"; None: bf16 where there is hardware, as
            in the evaluations.
        pixels: how they are normalised where neither a model.json nor an .onnx says it: "face",
            "imagenet", or "raw" for 0..255.

    Returns:
        A Model with `embed(images)`, `width`, `view` and `fingerprint`. Its weights are read when
        they are first needed.

    Raises:
        BctError: no such file, unknown pixels. Weights that do not fit are refused when they are
            read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if pixels not in (None, *PIXELS):
        raise BctError(f"there are no pixels {pixels!r}", f"give one of {', '.join(PIXELS)}")
    return open_model(file, network, amp_dtype(amp, device), pixels=pixels)


def embed(
    models: Mapping[str, Model],
    images: ImageSet,
    cache: str | Path | None = None,
    batch_size: int = 128,
    num_workers: int = 2,
) -> dict[str, np.ndarray]:
    """Embeddings of all images by several models, which share the decoding.

    Args:
        models: by any label. images: N images, of open_images or a protocol's.
        cache: folder in which embeddings are kept and found again, by weights, images, view and
            precision; None: they last as long as this process.

    Returns:
        Label -> float32 (N, D), not normalised, memory-mapped and read-only; stored embeddings keep
        their own float type. Where a protocol is of aligned faces, an embedding is that of the
        image plus that of its mirror image.

    Raises:
        BctError: weights that do not load, an image that can't be read, stored embeddings of other
        images.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loading = {"batch_size": batch_size, "num_workers": num_workers}
    return embed_models(models, images, cache, device=device, **loading)


def open_protocol(path: str | Path, gallery: str | Path | None = None) -> Protocol:
    """What to evaluate on.

    Args:
        path: a verification set in insightface's .bin format; or an image set, see open_images,
            which is searched by class.
        gallery: the image set to search in; None: each image among all the others.

    Returns:
        A Protocol with `images`, and `pairs` or `search`. That of IJB-B and IJB-C is read by
        tools.ijbc.protocol.read_protocol, in a clone of the repository.

    Raises:
        BctError: no such file or set, or one that is damaged.
    """
    if Path(path).suffix == ".bin":
        if gallery is not None:
            raise BctError(f"{path} has pairs, no searches", "leave the gallery out")
        return open_bin(path)
    if (Path(path) / "meta").is_dir() or any(Path(path).glob("IJB[BC]/meta")):
        raise BctError(
            f"{path} is IJB's, which open_protocol does not read",
            "in a clone of the repository: tools.ijbc.protocol.read_protocol(path)",
        )
    return open_search(path, gallery)
