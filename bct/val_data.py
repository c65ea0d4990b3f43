"""val_data: images with classes that a training is validated on, opened and matched."""

from typing import NamedTuple

import numpy as np
from easydict import EasyDict

from bct import distributed
from bct.data.image_set import ImageSet
from bct.data.label_map import new_to_old
from bct.data.sets import open_images
from bct.errors import BctError
from bct.method import Method
from bct.metrics.relevance import ByClass, positives, unopposed
from bct.models import widths
from bct.old_model import OldModel
from bct.rows import present_rows
from bct.stored.artefacts import place_of_model
from bct.stored.vector_files import open_vectors


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


def open_val_data(cfg: EasyDict, dataset: ImageSet, old: OldModel, method: type[Method]) -> ValData:
    """Opens val_data, matches its classes with the training set's, finds the old model's features;
    says which figures there will be, and why not others.

    Raises BctError: no such set, fewer images than ranks, nothing to judge; old features of other
    images, of another old model or of a width that `dimensions` can't match.
    """
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
    return features, np.flatnonzero(present_rows(features))
