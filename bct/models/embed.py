"""The one loop that turns images into embeddings: for evaluation, extraction and training alike."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from bct import distributed
from bct.amp import dtype_name
from bct.data.image_set import ImageSet
from bct.data.loader import Batch, Loader
from bct.data.views import View
from bct.errors import BctError
from bct.files import sha256
from bct.log import progress
from bct.models.whole_images import Whole, embedded_whole
from bct.outputs import short_name
from bct.rows import check_rows, refuse_not_finite, zeros_remark
from bct.stored.artefacts import open_valid, shared_artefact
from bct.stored.stacked import Stacked


class Embedder(Protocol):
    """What the loop asks of a model: bct.models.model.Model has it."""

    file: str
    network: str | None
    sha256: str
    view: View | None  # None: stored embeddings
    dtype: torch.dtype | None
    pixels: str | None  # asked of ONNX alone
    backbone: nn.Module
    width: int

    def rows(self, images: ImageSet) -> np.ndarray: ...


def embedding_of(output: torch.Tensor | tuple) -> torch.Tensor:
    """The embedding among what a backbone in training returns, see bct.method.Method.backbone."""
    return output if torch.is_tensor(output) else output.embedding


@torch.inference_mode()
def embedded(
    networks: Mapping[str, nn.Module], loader: Loader, what: str = "", mirror: bool = False
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """This rank's batches, each with its embeddings by every network, float32 (B, D), as they are.

    Args:
        networks: in eval mode, on the loader's device.
        what: name of a progress bar; none without.
        mirror: the embedding is that of the image plus that of its mirror image.
    """
    batches = loader.epoch()
    for batch in progress(batches, what, len(loader), "batch") if what else batches:
        rows = {}
        for key, network in networks.items():
            x = embedding_of(network(batch.images)).float()
            if mirror:
                x = x + embedding_of(network(batch.images.flip(3))).float()
            rows[key] = x.cpu().numpy()
        yield batch, rows


def embed_set(
    network: nn.Module, images: ImageSet, device: torch.device, batch_size: int, mirror: bool
) -> np.ndarray:
    """Embeddings of a small set by a network in training, float32 (N, D), on every rank.

    Raises BctError, on all ranks, for fewer images than ranks.
    """
    if len(images) < distributed.world_size():
        raise BctError(
            f"{images.path} has {len(images)} images for {distributed.world_size()} ranks",
            "start no more ranks than there are images",
        )
    network.eval()
    loader = Loader(images, batch_size, device, num_workers=0, train=False)
    parts = [rows["x"] for _, rows in embedded({"x": network}, loader, mirror=mirror)]
    local = torch.from_numpy(np.concatenate(parts)).to(device)
    return distributed.all_gather_shares(local, len(images)).cpu().numpy()


def embed_models(
    models: Mapping[str, Embedder],
    images: ImageSet,
    cache: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    mirror: bool | None = None,
    batch_size: int = 128,
    num_workers: int = 2,
    reload: bool = False,
    remarks: list[str] | None = None,
    whole: Whole | None = None,
) -> dict[str, np.ndarray]:
    """Label -> embeddings of all images, float (N, D), not normalised, memory-mapped.

    Rows go to a memory map batch by batch; neither the device nor this process ever holds them all.
    Models that see images alike share the decoding. Ranks share the images; every rank gets the
    result.

    Args:
        models: networks, or stored embeddings, which are opened.
        cache: folder of embeddings computed before, keyed by weights, images, view and precision;
            None: they last as long as the process.
        mirror: the embedding is that of the image plus that of its mirror image; default: as the
            images have it.
        reload: compute anew what is cached.
        remarks: takes a line for each model that has rows of zeros, which is said in any case.
        whole: networks see images in their own aspect, one at a time, at these sizes; None: as the
            models' views say.

    Raises BctError: weights that do not load; an image that can't be read; stored embeddings of
    other images; what bct.rows.check_rows refuses.
    """
    device, found, missing = torch.device(device), {}, {}
    mirror = images.mirror if mirror is None else mirror
    with ExitStack() as stack:
        folder = Path(cache) if cache else stack.enter_context(_passing_folder())
        for label, model in models.items():
            if model.view is None:
                found[label] = model.rows(images)
                continue
            if whole is not None and model.file.lower().endswith(".onnx"):
                raise BctError(
                    f"{model.file} is a graph for images of one size",
                    "give the network's own weights, or leave images squashed to that size",
                )
            model.backbone  # noqa: B018 - a wrong network is refused even if a cache would do
            about = made_from(model, images, mirror, whole)
            path = folder / f"{short_name(images.name)}_{sha256(json.dumps(about))[:20]}.npy"
            there = None if reload else open_valid(path, **about)
            if all(distributed.all_gather_object(there is not None)):
                distributed.say(f"{model.file}: embeddings are cached in {path.name}")
                found[label] = there
            else:
                seen = model.view if whole is None else View(pixels=model.view.pixels)
                missing.setdefault(seen, {})[label] = path, about
        for seen, parts in missing.items():
            chosen = {label: models[label] for label in parts}
            if whole is None:
                loader = Loader(
                    images, batch_size, device, num_workers=num_workers, train=False, view=seen
                )
                rows = partial(_in_batches, loader, f"embed {images.name}", mirror)
            else:
                rows = partial(
                    embedded_whole, images, whole, device, seen.pixels, f"embed {images.name}",
                    mirror, num_workers,
                )  # fmt: skip
            found |= _compute(chosen, parts, images, device, rows)
    said = _checked({models[label].file: rows for label, rows in found.items()}, images)
    for line in said:
        distributed.say(line)
    if remarks is not None:
        remarks += [line for line in said if line not in remarks]
    return {label: found[label] for label in models}


def _in_batches(
    loader: Loader, what: str, mirror: bool, networks: Mapping[str, nn.Module]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    for batch, rows in embedded(networks, loader, what, mirror):
        yield batch.index.cpu().numpy(), rows


def _checked(found: Mapping[str, np.ndarray], images: ImageSet) -> list[str]:
    """A line for each file whose model gives rows of zeros. Raises BctError like check_rows."""

    def describe(row: int) -> str:
        return images.describe(row)

    lines = []
    for file, rows in found.items():
        zeros = _zeros(rows, file, describe)
        if len(zeros):
            lines.append(zeros_remark(file, zeros, len(rows), describe))
    return lines


def _zeros(rows: np.ndarray | Stacked, file: str, describe: Callable[[int], str]) -> np.ndarray:
    """Like check_rows; what is stacked is looked at part by part, and may be alike."""
    if not isinstance(rows, Stacked):
        return check_rows(rows, file, describe)
    zeros = []
    for start, part in zip(rows.starts.tolist(), rows.parts, strict=False):
        zeros.append(start + check_rows(part, file, lambda row, a=start: describe(a + row), False))
    return np.concatenate(zeros)


def refuse_batch(file: str, rows: np.ndarray, index: np.ndarray, images: ImageSet) -> None:
    """Raises BctError for a batch's embedding that is not finite, naming model, row and image."""
    refuse_not_finite(rows, file, lambda k: f"{index[k]} ({images.describe(int(index[k]))})")


def made_from(model: Embedder, images: ImageSet, mirror: bool, whole: Whole | None = None) -> dict:
    """What embeddings depend on: entries of their manifest."""
    seen = model.view
    onnx = model.file.lower().endswith(".onnx")  # its nodes say what it is fed, or somebody does
    return {
        **({"fed": model.pixels or "as its first nodes say"} if onnx else {}),
        "model": model.sha256,
        "network": model.network,
        "data": images.fingerprint,
        "recipe": images.recipe,
        "amp": dtype_name(model.dtype),
        "view": seen.seen if whole is None else [*whole.entries, seen.pixels],
        "mirror": mirror,
    }


def _compute(
    models: dict[str, Embedder],
    parts: dict[str, tuple[Path, dict]],
    images: ImageSet,
    device: torch.device,
    embedded_by: Callable[[dict[str, nn.Module]], Iterator[tuple[np.ndarray, dict]]],
) -> dict[str, np.ndarray]:
    """Fills a memory-mapped file for each model in one pass over the images.

    Args:
        embedded_by: networks -> (indices (B,), embeddings by label, (B, D)) of this rank's images.
    """
    networks, paths, out = {}, {}, {}
    for label, model in models.items():
        path, _ = parts[label]
        paths.setdefault(path, label)  # two labels of one model have one file
        networks[paths[path]] = model.backbone.to(device)
    with ExitStack() as stack:
        for path, label in paths.items():
            shape = (len(images), models[label].width)
            about = {"kind": "embeddings", "weights": models[label].file, **parts[label][1]}
            out[label] = stack.enter_context(shared_artefact(path, shape, "float32", **about))
        networks = {label: networks[label] for label in out}
        for index, rows in embedded_by(networks):
            for label, values in rows.items():
                refuse_batch(models[label].file, values, index, images)
                out[label][index] = values
    distributed.barrier()
    for array in out.values():
        array.flags.writeable = False
    # not what the paths hold by now: another run may be replacing it. Views, because bct.rows opens
    # a whole mapped file by its name, which was a temporary one
    views = {path: out[label][:] for path, label in paths.items()}
    return {label: views[parts[label][0]] for label in models}


@contextmanager
def _passing_folder() -> Iterator[Path]:
    """A folder for files that stay mapped after it is gone, the same on all ranks."""
    with ExitStack() as stack:
        name = [None]
        if distributed.writes():
            name[0] = stack.enter_context(tempfile.TemporaryDirectory(prefix="bct-"))
        if distributed.world_size() > 1:
            dist.broadcast_object_list(name, src=0)
        yield Path(name[0])
        distributed.barrier()
