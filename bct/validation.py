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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from bct import distributed
from bct.data.image_set import ImageSet
from bct.data.loader import Loader
from bct.errors import BctError
from bct.log import RunLog
from bct.method import Method
from bct.metrics.relevance import ByClass
from bct.metrics.retrieval import retrieve
from bct.models import widths
from bct.models.about import said_beside, view_of_config
from bct.models.embed import embedding_of
from bct.old_model import OldModel
from bct.protocols.pairs import VerificationSet, load_bins, verify
from bct.training.classified import top_shares
from bct.val_data import ValData, open_val_data

_DEFAULTS = ("mean", "val/loo_map", "val/top1")  # what best.pt is chosen by, the first there is


@dataclass(frozen=True)
class Validation:
    """sets: of val_targets; val: val_data; best: the figure that best.pt is chosen by, or None.

    best_by, best_on: the same, and the images of each figure, of the run's former starts.
    """

    sets: list[VerificationSet]
    val: ValData | None
    best: str | None
    best_by: str | None = None
    best_on: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sets) or self.val is not None

    @property
    def images(self) -> dict[str, str]:
        """The fingerprint of the images that each figure is of."""
        found = {images.name: images.fingerprint for images in self.sets}
        if found:
            found["mean"] = " ".join(found[name] for name in sorted(found))
        if self.val is not None:
            found |= dict.fromkeys(self.val.figures, self.val.images.fingerprint)
        return found

    def after(self, progress: dict[str, Any]) -> "Validation":
        """The same, of a run that goes on from a checkpoint."""
        before = {key: progress[key] for key in ("best_by", "best_on") if key in progress}
        return replace(self, **before)

    def said(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"best_by": self.best or self.best_by, "best_on": {**self.best_on, **self.images}}


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
    if dataset.vectors and (cfg.val_targets or cfg.val_data):
        raise BctError(
            f"{method.__name__} trains a map of stored vectors, which sees no images",
            "leave val_targets and val_data out: eval/retrieval.py judges the mapped gallery",
        )
    sets = _verification_sets(cfg, dataset)
    val = open_val_data(cfg, dataset, old, method) if cfg.val_data else None
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
    distributed.agree(val_targets=" ".join(images.fingerprint for images in sets))
    return sets


def highest_until(progress: dict[str, Any], validation: Validation) -> dict[str, float]:
    """The best of each figure that a checkpoint's progress knows, as validate takes it.

    A best.pt that was chosen by another figure, or on other images, is replaced by the next
    validation, which is said. Checkpoints of former versions know the mean alone.
    """
    said, by = progress["best"], progress.get("best_by", "mean")
    highest = dict(said) if isinstance(said, dict) else {"mean": said} if said else {}
    before = progress.get("best_on", {})
    others = {
        k for k, now in validation.images.items() if k in highest and before.get(k, now) != now
    }
    if others:
        distributed.say(
            f"warning: other images than before: {', '.join(sorted(others))} begin anew"
            + "; best.pt is replaced by the next validation" * (validation.best in others)
        )
    highest = {name: value for name, value in highest.items() if name not in others}
    if by in highest and validation.best not in (None, by):
        distributed.say(
            f"warning: best.pt was chosen by {by}; the best by {validation.best} from now on "
            "replaces it"
        )
        highest.pop(validation.best, None)
    return highest


def say_chosen_before(cfg: EasyDict, validation: Validation) -> None:
    """Warns that a finished run's best.pt was chosen by another figure than is asked for now."""
    by = said_beside(Path(cfg.output) / "best.pt").get("chosen_by")
    if None not in (by, validation.best) and by != validation.best:
        distributed.say(
            f"warning: its best.pt was chosen by {by}, not by {validation.best}: a finished run is "
            "not validated anew"
        )


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
    embeddings, classified = _embedded(cfg, val, backbone, method, device)
    figures = {}
    if classified is not None:
        start, count = _share(len(val.images))
        labels = torch.from_numpy(val.classes[start : start + count]).to(device)
        shares = top_shares(head, classified, labels, len(val.images))
        figures = {f"val/top{k}": share for k, share in shares.items()}
    del classified
    if val.searched or val.old is not None:
        rows = distributed.shares_to_rank0(embeddings, len(val.images))
        del embeddings
        found = {} if rows is None else _searched(cfg, val, rows.numpy())
        figures |= distributed.all_gather_object(found)[0]
    return figures


def _share(total: int) -> tuple[int, int]:
    return distributed.contiguous_share(total, distributed.rank(), distributed.world_size())


@torch.inference_mode()
def _embedded(
    cfg: EasyDict, val: ValData, backbone: nn.Module, method: Method, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """This rank's share: embeddings, and what the head classifies, float32 (n, D), on the device;
    None if its answers can't be judged.

    Images are seen as every evaluation of this network sees them, not mirrored.
    """
    backbone.eval()
    loader = Loader(
        val.images,
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
        if val.classes is not None:
            classified.append(method.classified(output).float())
    return torch.cat(embeddings), torch.cat(classified) if classified else None


def _searched(cfg: EasyDict, val: ValData, rows: np.ndarray) -> dict[str, float]:
    """Leave-one-out figures of all embeddings (N, D). One that is not finite finds nothing."""
    if len(broken := np.flatnonzero(~np.isfinite(rows).all(axis=1))):
        which = val.images.describe(int(broken[0]))
        logging.warning(f"{len(broken)} embeddings of val_data are not finite, e.g. of {which}")
        rows[broken] = 0
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
