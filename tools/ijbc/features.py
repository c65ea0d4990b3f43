"""Embeddings of all images of a protocol, computed once per model and cached."""

from pathlib import Path

import numpy as np
import torch

from bct import distributed
from bct.amp import dtype_name
from bct.data.images import decode
from bct.data.loader import Loader
from bct.errors import BctError
from bct.files import sha256_file
from bct.log import progress
from bct.models.weights import load_backbone
from bct.stored.artefacts import open_valid, shared_artefact
from bct.stored.vector_files import is_stored, stored_embeddings
from tools.ijbc.align import align, similarity_to_template
from tools.ijbc.protocol import Protocol

# parts of the cache key: change them when the pixels change
_RECIPES = {True: "align5-112-flipsum-v1", False: "align5-112-plain-v1"}


class LooseCrops:
    """The protocol's images, aligned; a data set for bct.data.loader.Loader."""

    def __init__(self, protocol: Protocol):
        self.protocol = protocol
        self.matrices = similarity_to_template(protocol.landmarks.astype(np.float64))

    def __len__(self) -> int:
        return len(self.protocol.names)

    def load(self, index: int, out: np.ndarray) -> int:
        file = self.protocol.image(index)
        try:
            out[:] = align(decode(file.read_bytes()), self.matrices[index])
        except FileNotFoundError:
            raise BctError(
                f"{file} does not exist", "the meta files list it: restore loose_crop/"
            ) from None
        except ValueError as error:
            raise BctError(f"{file} is broken ({error})", "restore the file") from None
        return 0

    def describe(self, index: int) -> str:
        return str(self.protocol.image(index))


@torch.inference_mode()
def image_features(
    protocol: Protocol,
    weights: str | Path,
    network: str | None,
    cache: str | Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    batch_size: int = 128,
    num_workers: int = 2,
    *,
    mirror: bool = True,
    reload: bool = False,
) -> np.ndarray:
    """f(image) + f(mirrored image) for every image, float32 (N, D), memory-mapped.

    The cache is keyed by the weights' hash, the protocol's images and the precision. Ranks share
    the work; every rank gets the result.

    Args:
        weights: a model (bct.models.weights.load_backbone), or an .npy or .npz of such sums, one
            row per image in the protocol's order, as eval/ijbc.py -E writes.
        mirror: False for f(image) alone.
        reload: compute anew what is cached.
    """
    if is_stored(weights):
        if not mirror:
            raise BctError(
                f"{weights} holds sums of image and mirror image, so there is no mode F0",
                "give the model itself, or leave out -B",
            )
        return stored_embeddings(weights, len(protocol.names))
    # before a cache is looked for: a wrong network is refused in any case
    backbone = load_backbone(weights, network, dtype, fold=True)
    made_from = {
        "model": sha256_file(weights),
        "data": protocol.fingerprint,
        "amp": dtype_name(dtype),
        "recipe": _RECIPES[mirror],
    }
    key = f"{made_from['model'][:12]}_{made_from['data'][:12]}_{made_from['amp']}"
    path = Path(cache) / f"{protocol.subset}_{key}{'' if mirror else '_plain'}.npy"
    cached = None if reload else open_valid(path, **made_from)
    if all(distributed.all_gather_object(cached is not None)):
        distributed.say(f"{weights}: embeddings are cached in {path.name}")
        return cached
    backbone = backbone.to(device)
    crops = LooseCrops(protocol)
    loader = Loader(crops, batch_size, device, num_workers=num_workers, train=False)
    manifest = {"kind": "ijb", "weights": str(weights), **made_from}
    shape = (len(crops), backbone.embedding_size)
    with shared_artefact(path, shape, "float32", **manifest) as out:
        name = Path(weights).parent.name or str(weights)
        for batch in progress(loader.epoch(), f"{protocol.subset} {name}", len(loader), "batch"):
            embeddings = backbone(batch.images)
            if mirror:
                embeddings = embeddings + backbone(batch.images.flip(3))
            out[batch.index.cpu().numpy()] = embeddings.cpu().numpy()
    distributed.barrier()
    out.flags.writeable = False
    return out  # not what `path` is by now: another run may be replacing it
