"""What a training is validated on: verification sets (`val_targets`) and images (`val_data`).

A figure has one name in the log, metrics.jsonl, TensorBoard and the config key `best`:

    lfw, ...                      accuracy on a verification set; the higher, the better, as all are
    mean                          mean accuracy of these sets
    val/top1, val/top5            share of val_data's images whose class the head names, of those
                                  whose class is trained
    val/loo_top1, val/loo_map     each image searched among all the others by its embedding
    val/cross_top1, val/cross_map the same among the old model's stored embeddings of the others
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from bct import distributed
from bct.data.image_set import ImageSet
from bct.data.label_map import new_to_old
from bct.data.loader import Loader
from bct.data.sets import open_images
from bct.errors import BctError
from bct.log import RunLog
from bct.method import Method
from bct.metrics.relevance import ByClass, positives, unopposed
from bct.metrics.retrieval import retrieve
from bct.models import widths
from bct.models.about import view_of_config
from bct.models.embed import embedding_of
from bct.old_model import OldModel
from bct.protocols.pairs import VerificationSet, load_bins, verify
from bct.stored.artefacts import place_of_model
from bct.stored.vector_files import open_vectors
from bct.training.classified import top_shares

_DEFAULTS = ("mean", "val/loo_map", "val/top1")  # what best.pt is chosen by, the first there is


class ValData(NamedTuple):
    """val_data, opened.

    classes: int64 (N,), the label in training of each image, -1 without one; None: the head's
        answers can't be judged.
    searched: whether any image has another one of its class to find, and one of another class.
    old: float (N, d_old), the old model's embeddings of these images; None without.
    old_rows: int64 (n,), which of them there are; None: all.
    """

    images: ImageSet
    classes: np.ndarray | None
    searched: bool
    old: np.ndarray | None
    old_rows: np.ndarray | None

    @property
    def figures(self) -> list[str]:
        found = ["val/top1", "val/top5"] if self.classes is not None else []
        found += ["val/loo_top1", "val/loo_map"] if self.searched else []
        return found + (["val/cross_top1", "val/cross_map"] if self.old is not None else [])


@dataclass(frozen=True)
class Validation:
    """sets: of val_targets; val: val_data; best: the figure that best.pt is chosen by, or None."""

    sets: list[VerificationSet]
    val: ValData | None
    best: str | None

    def __bool__(self) -> bool:
        return bool(self.sets) or self.val is not None


def open_validation(
    cfg: EasyDict, dataset: ImageSet, old: OldModel, method: type[Method]
) -> Validation:
    """Opens what the config names; says which figures there will be, and which not.

    Args:
        dataset: the training set; its classes' names are matched with val_data's.

    Raises BctError: a set that is damaged or, with strict_val, missing; val_data that is not there
    or has nothing to judge; old features of other images or another width; `best` that names none
    of the figures there will be.
    """
    sets = _verification_sets(cfg, dataset)
    val = _val_data(cfg, dataset, old, method) if cfg.val_data else None
    if val is None and cfg.val_old_features:
        raise BctError(
            "val_old_features is given without val_data",
            "set val_data to the images that they are the old model's features of",
        )
    figures = [images.name for images in sets]
    figures += ["mean"] * bool(sets) + (val.figures if val else [])
    best = _best(cfg, figures)
    if best is None and cfg.val_targets:
        distributed.say("nothing is left to validate on: there will be no best.pt")
    elif best is not None and (val or cfg.best):
        distributed.say(f"best.pt is chosen by {best}")
    return Validation(sets, val, best)


def _best(cfg: EasyDict, figures: list[str]) -> str | None:
    if cfg.best is None:
        return next((name for name in _DEFAULTS if name in figures), None)
    if cfg.best in figures:
        return cfg.best
    there = f"choose from {', '.join(figures)}" if figures else "set val_targets or val_data"
    raise BctError(f"best = {cfg.best!r} is no figure of this training", there)


def _verification_sets(cfg: EasyDict, dataset: ImageSet) -> list[VerificationSet]:
    """Those of val_targets that are there; the others are named, or refused with strict_val."""
    folder = Path(cfg.rec_val or (dataset.path if dataset.path.is_dir() else dataset.path.parent))
    files = {name: folder / f"{name.removesuffix('.bin')}.bin" for name in cfg.val_targets}
    missing = [] if cfg.strict_val else [n for n, file in files.items() if not file.exists()]
    if missing:
        distributed.say(
            f"warning: {folder} has no {', '.join(files[name].name for name in missing)}: "
            "validation goes without (strict_val=True stops there; rec_val names the folder)"
        )
    sets = load_bins(folder, [name for name in files if name not in missing])
    if any(images.name == "mean" for images in sets):
        raise BctError(
            "a verification set is called mean, as the mean of all sets is", "rename mean.bin"
        )
    return sets


def _val_data(cfg: EasyDict, dataset: ImageSet, old: OldModel, method: type[Method]) -> ValData:
    if dataset.vectors:
        raise BctError(
            f"{method.__name__} trains a map of stored vectors, which sees no images",
            "leave val_data out; eval/retrieval.py judges the mapped gallery",
        )
    images = open_images(cfg.val_data, cfg.rec_backend)
    distributed.agree(val_data=images.fingerprint)
    if len(images) < distributed.world_size():
        raise BctError(
            f"val_data {images.path} has {len(images)} images for {distributed.world_size()} ranks",
            "start no more ranks than there are images",
        )
    classes, why = _trained_classes(cfg, dataset, images)
    searched = _can_search(images.labels)
    features, rows = _old_features(cfg, images, old, method)
    there = images.labels if rows is None else images.labels[rows]
    if features is not None and not _can_search(there):
        raise BctError(
            f"among the old features of {images.path} no image has another one of its class",
            "leave val_old_features out, or give a set with several images per class",
        )
    val = ValData(images, classes, searched, features, rows)
    if not val.figures:
        raise BctError(
            f"there is nothing to judge on val_data {images.path}: no class has two images, and "
            f"the head's answers can't be judged ({why})",
            "give a set with several images per class",
        )
    said = f"val_data {images.path}: {len(images)} images, {images.num_classes} classes; "
    distributed.say(said + ", ".join(val.figures) + (f"; no val/top1: {why}" if why else ""))
    return val


def _can_search(labels: np.ndarray) -> bool:
    if len(labels) == 0:
        return False
    search = ByClass(labels, labels, leave_one_out=True)
    return bool(((positives(search) > 0) & ~unopposed(search, len(labels))).any())


def _trained_classes(
    cfg: EasyDict, dataset: ImageSet, images: ImageSet
) -> tuple[np.ndarray | None, str]:
    """The label in training of every image, and "", or None and why that is not known."""
    if cfg.head == "none":
        return None, "there is no head"
    names, trained = images.class_names, dataset.class_names
    if names is not None and trained is not None:
        try:
            labels = new_to_old(names, trained)[images.labels]
        except BctError as error:
            twice = len(set(names)) < len(names) or len(set(trained)) < len(trained)
            return None, error.what if twice else "it has no class of the training set"
        return labels, ""
    if not cfg.val_same_labels:
        return None, "not both sets name their classes (val_same_labels=True: labels are the same)"
    if images.num_classes > cfg.num_classes:
        raise BctError(
            f"val_same_labels=True, but {images.path} has {images.num_classes} classes, the "
            f"training set {cfg.num_classes}",
            "leave val_same_labels out, or give a set with the training set's labels",
        )
    return images.labels, ""


def _old_features(
    cfg: EasyDict, images: ImageSet, old: OldModel, method: type[Method]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The old model's embeddings of val_data, and the rows there are; None: all. (None, None)
    without."""
    path = cfg.val_old_features
    do = "extract the old model's features of val_data's images"
    if path is None and cfg.old_model:
        place = place_of_model(cfg.old_model, cfg.val_data)
        path, do = place.path("old_embedding"), f"make it with: {place.command('old_embedding')}"
        if not path.exists():
            distributed.say(f"no val/cross_map: {path} does not exist; {do}")
            return None, None
    if path is None:
        return None, None
    features, manifest = open_vectors(path)
    if not manifest:
        distributed.say(
            f"warning: {path} has no manifest: nothing tells whether its rows are those of "
            f"{images.path}, in this order"
        )
    elif manifest.get("data") != images.fingerprint:
        raise BctError(f"{path} was made from {manifest.get('data_path')}, not from val_data", do)
    if len(features) != len(images):
        raise BctError(f"{path} has {len(features)} rows for {len(images)} images of val_data", do)
    models = {m["model"] for kind, m in old.manifests.items() if kind != "new_embedding"}
    if manifest and models and manifest.get("model") not in models:
        raise BctError(f"{path} is of another old model than the one this training is for", do)
    widths.check(method.output_width(cfg, old.dim), features.shape[1], cfg.dimensions)
    if not manifest.get("absent"):
        return features, None
    return features, np.flatnonzero(np.any(features, axis=1))


def highest_until(progress: dict[str, Any], validation: Validation) -> dict[str, float]:
    """The best of each figure that a checkpoint's progress knows, as validate takes it.

    A best.pt that was chosen by another figure is replaced by the next validation, which is said.
    Checkpoints of former versions know the mean alone.
    """
    said, by = progress["best"], progress.get("best_by", "mean")
    highest = dict(said) if isinstance(said, dict) else {"mean": said} if said else {}
    if by in highest and validation.best not in (None, by):
        distributed.say(
            f"warning: best.pt was chosen by {by}; the best by {validation.best} from now on "
            "replaces it"
        )
        highest.pop(validation.best, None)
    return highest


def validate(
    cfg: EasyDict,
    validation: Validation,
    backbone: nn.Module,
    method: Method,
    head: nn.Module,
    device: torch.device,
    step: int,
    highest: dict[str, float],
    log: RunLog,
) -> tuple[dict[str, float], bool]:
    """Computes and logs all figures; every rank has to call it. Leaves the backbone in eval mode.

    Args:
        highest: the best of each figure so far.

    Returns:
        The same with these figures, and whether the one that best.pt is chosen by has risen.
    """
    figures: dict[str, float] = {}
    for images, (name, result) in zip(
        validation.sets, verify(backbone, validation.sets, device).items(), strict=True
    ):
        figures[name] = result.mean
        logging.info(f"[{name}][{step}]XNorm: {result.xnorm:f}")
        note = f" ({images.only} pairs only: it says nothing)" if images.only else ""
        logging.info(f"[{name}][{step}]Accuracy-Flip: {result.mean:1.5f}+-{result.std:1.5f}{note}")
        best = max(result.mean, highest.get(name, 0.0))
        logging.info(f"[{name}][{step}]Accuracy-Highest: {best:1.5f}")
    if figures:
        figures["mean"] = sum(figures.values()) / len(figures)
        best = max(figures["mean"], highest.get("mean", 0.0))
        logging.info(f"[mean][{step}]Accuracy-Highest: {best:1.5f}")
    if validation.val is not None:
        found = _of_images(cfg, validation.val, backbone, method, head, device)
        for name, value in found.items():
            best = max(value, highest.get(name, 0.0))
            logging.info(f"[{name}][{step}]Now: {value:1.5f}   Highest: {best:1.5f}")
        figures |= found
    log.scalars(step, **figures)
    chosen = validation.best
    rises = chosen is not None and figures[chosen] > highest.get(chosen, float("-inf"))
    reached = {name: max(value, highest.get(name, value)) for name, value in figures.items()}
    return {**highest, **reached}, rises


def _of_images(
    cfg: EasyDict,
    val: ValData,
    backbone: nn.Module,
    method: Method,
    head: nn.Module,
    device: torch.device,
) -> dict[str, float]:
    """The figures of val_data, the same on all ranks."""
    embeddings, classified = _embedded(cfg, val.images, backbone, method, device)
    figures = {}
    if val.classes is not None:
        start, count = _share(len(val.images))
        labels = torch.from_numpy(val.classes[start : start + count]).to(device)
        shares = top_shares(head, classified, labels, len(val.images))
        figures = {f"val/top{k}": share for k, share in shares.items()}
    del classified
    if val.searched or val.old is not None:
        rows = distributed.shares_to_rank0(embeddings, len(val.images))
        del embeddings
        # the search is rank 0's alone; a failure is all ranks'
        found: dict[str, float] | BctError = {}
        if rows is not None:
            try:
                found = _searched(cfg, val, rows.numpy())
            except BctError as error:
                found = BctError(error.what, error.do)
        found = distributed.all_gather_object(found)[0]
        if isinstance(found, BctError):
            raise found
        figures |= found
    return figures


def _share(total: int) -> tuple[int, int]:
    return distributed.contiguous_share(total, distributed.rank(), distributed.world_size())


@torch.inference_mode()
def _embedded(
    cfg: EasyDict, images: ImageSet, backbone: nn.Module, method: Method, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's share: embeddings, and what the head classifies, float32 (n, D), on the device.

    Images are seen as every evaluation of this network sees them, not mirrored.
    """
    backbone.eval()
    loader = Loader(
        images,
        cfg.batch_size,
        device,
        num_workers=cfg.num_workers,
        train=False,
        view=view_of_config(cfg),
    )
    embeddings, classified = [], []
    for batch in loader.epoch():
        output = backbone(batch.images)
        embeddings.append(embedding_of(output).float())
        classified.append(method.classified(output).float())
    return torch.cat(embeddings), torch.cat(classified)


def _searched(cfg: EasyDict, val: ValData, rows: np.ndarray) -> dict[str, float]:
    """Leave-one-out figures of all embeddings (N, D)."""
    figures, labels = {}, val.images.labels
    if val.searched:
        alone = retrieve(rows, rows, ByClass(labels, labels, leave_one_out=True), ks=(1,))
        figures = {"val/loo_top1": alone.top[1], "val/loo_map": alone.mean_ap}
    if val.old is not None:
        there = slice(None) if val.old_rows is None else val.old_rows
        new, old = widths.same_width(cfg.dimensions, rows[there], val.old[there])
        relevance = ByClass(labels[there], labels[there], leave_one_out=True)
        cross = retrieve(new, old, relevance, ks=(1,))
        figures |= {"val/cross_top1": cross.top[1], "val/cross_map": cross.mean_ap}
    return figures
