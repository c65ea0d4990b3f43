"""init_from: a network and a head that start from a file's weights instead of drawn ones."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import nn

from backbones import fct, own_state
from bct import distributed
from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.files import sha256_file
from bct.models.about import holds_model, said_beside
from bct.models.classifiers import Classifier, classifier_file, read_classifier
from bct.models.reference_checkpoints import is_torchscript
from bct.models.weights import HEADS
from bct.safe.tensors import read_state
from bct.training.checkpoint import known_record
from bct.training.class_shards import class_share
from bct.training.heads import PartialFC, SoftmaxHead
from bct.training.run_record import FILES

_LEAST = 0.25  # share of the network's weights, or half of the file's, that have to fit
_SHOWN = 3  # names of each kind in the line that counts them


class Fit(NamedTuple):
    """Names of the network's tensors, and of the file's.

    taken: those that have the file's values.
    reshaped: those that the file has in another shape; they stay as they were drawn.
    missing: those that the file does not have; likewise.
    left: the file's that the network does not have.
    """

    taken: list[str]
    reshaped: list[str]
    missing: list[str]
    left: list[str]


class Start(NamedTuple):
    """What a network and a head have been started from. head: what became of the head."""

    file: Path
    fit: Fit
    head: str

    def log(self) -> None:
        """One line of counts with the first names; all names go to the log file alone."""
        kinds = {
            "taken": self.fit.taken,
            "of another shape": self.fit.reshaped,
            "not in the file": self.fit.missing,
            "left": self.fit.left,
        }
        counts = [f"{len(names)} {kind}{_some(names)}" for kind, names in kinds.items()]
        logging.info(f"started from {self.file}: tensors {', '.join(counts)}; head: {self.head}")
        if len(self.fit.taken) < len(self.fit.reshaped) + len(self.fit.missing):
            logging.warning("warning: most tensors are drawn: is `network` that of init_from?")
        for kind, names in kinds.items():
            if names:
                logging.info(f"{kind}: {' '.join(names)}", extra={"file_only": True})


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{more})" if names else ""


def weights_file(given: str | Path) -> Path:
    """The file that init_from means: itself, or a model folder's model.pt.

    Raises BctError for one that is not there or can't be trained.
    """
    path = Path(given)
    if path.is_dir():
        onnx_alone = (path / "model.onnx").is_file() and not (path / "model.pt").is_file()
        path /= "model.onnx" if onnx_alone else "model.pt"
    if not path.is_file():
        raise BctError(f"init_from: {path} does not exist", "check the path; nothing is downloaded")
    if path.suffix.lower() == ".onnx" or is_torchscript(path):
        kind = "ONNX" if path.suffix.lower() == ".onnx" else "TorchScript"
        raise BctError(
            f"init_from: {path} is {kind}, a program that can't be trained",
            "give the state_dict that it was exported from; as an old model it may stay as it is",
        )
    return path


def digest(cfg: EasyDict) -> str | None:
    """The SHA-256 of init_from's file; None without one. A run that goes on does not need the file
    any more: where it is gone, its record says the digest.

    Raises BctError as weights_file does, and for a file that the run itself would replace.
    """
    if cfg.init_from is None:
        return None
    try:
        file = weights_file(cfg.init_from)
        _refuse_own(cfg, file)
        return sha256_file(file)
    except BctError:
        there = Path(cfg.init_from).is_file() or holds_model(cfg.init_from)
        if cfg.resume and not there:
            record = known_record(Path(cfg.output))
            said = record.identity.get("init_from") if record else None
            if isinstance(said, str):
                distributed.say(f"warning: {cfg.init_from} is gone; this run has begun with it")
                return said
        raise


def _refuse_own(cfg: EasyDict, file: Path) -> None:
    output, there = Path(cfg.output).resolve(), file.resolve()
    written = [output / name for name in FILES]
    if there in written or there.parent == output / "checkpoints":
        raise BctError(
            f"init_from: {file} lies in this run's own output, which replaces it",
            "choose another output=...; to make a run longer, pass resume=True and a larger "
            "num_epoch without init_from",
        )


def start_from(cfg: EasyDict, dataset: ImageSet, backbone: nn.Module, head: nn.Module) -> Start:
    """Fills a network and its head with what fits of init_from's file.

    Raises:
        BctError: the file can't be read, or (almost) nothing in it fits.
    """
    file = weights_file(cfg.init_from)
    state = {k: v for k, v in read_state(file).items() if not k.startswith(HEADS)}
    own = backbone.state_dict()
    named = max(_namings(cfg.network, state), key=lambda named: _size(_fitting(own, named), own))
    taken = _fitting(own, named)
    fit = Fit(
        taken,
        [k for k in own if k in named and k not in taken],
        [k for k in own if k not in named],
        [k for k in named if k not in own],
    )
    _refuse_misfit(cfg.network, file, own, named, fit)
    with torch.no_grad():
        for name in taken:
            own[name].copy_(named[name])
    return Start(file, fit, _start_head(dataset, file, head))


def _namings(network: str, state: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The file's tensors under all names that a network of ours may know them by: other systems'
    names, a body alone, or the body within BT²'s network and BT-2's."""
    if network == "fct":
        yield fct.own_keys(state)
        return
    for prefix in ("", "body.", "resnet."):
        part = {k.removeprefix(prefix): v for k, v in state.items()}
        if len(part) < len(state):
            continue
        forms = [part]
        with suppress(TypeError):  # a width of no dimension
            forms.append(own_state(network, part)[0])
        for named in forms:
            yield named
            yield {f"body.{k}": v for k, v in named.items()}


def _fitting(own: dict[str, torch.Tensor], named: dict[str, torch.Tensor]) -> list[str]:
    return [k for k, v in own.items() if k in named and named[k].shape == v.shape]


def _size(names: list[str], own: dict[str, torch.Tensor]) -> int:
    return sum(own[name].numel() for name in names)


def _refuse_misfit(
    network: str,
    file: Path,
    own: dict[str, torch.Tensor],
    named: dict[str, torch.Tensor],
    fit: Fit,
) -> None:
    """By the matrices and filters alone: vectors fit by chance."""
    wanted = [k for k, v in own.items() if v.dim() > 1]
    there = [k for k, v in named.items() if v.dim() > 1]
    taken = [k for k in fit.taken if own[k].dim() > 1]
    if len(taken) >= max(_LEAST * len(wanted), 1) or len(taken) >= max(len(there) / 2, 1):
        return
    other = f", {len(fit.reshaped)} have another shape" if fit.reshaped else ""
    raise BctError(
        f"init_from: of {len(wanted)} weights of network {network} {len(taken)} are in "
        f"{file}{other}",
        "give weights of the same network, or the network of these weights",
    )


def _start_head(dataset: ImageSet, file: Path, head: nn.Module) -> str:
    """Takes the rows of the classes that the file has by name; what to say about it."""
    if not isinstance(head, SoftmaxHead | PartialFC):
        return "there is none"
    said = said_beside(file)
    if file.parent.name == "checkpoints":  # of a run
        said = said_beside(file.parent.parent / "model.pt")
    held = classifier_file(file)
    try:
        given = read_classifier([held])
    except BctError:
        if held != file:  # it is damaged
            raise
        return "drawn, the file holds none"
    given = given._replace(unit=given.unit or bool(said.get("head_unit")))
    theirs, ours = said.get("class_names"), dataset.class_names
    problem = _unlike(given, head) or _unnamed(theirs, ours, len(given.weight))
    if problem:
        return f"drawn, {problem}"
    rows = {name: row for row, name in enumerate(theirs)}
    pairs = [(label, rows[name]) for label, name in enumerate(ours) if name in rows]
    if not pairs:
        return "drawn, no class has the name of one in the file"
    _copy_rows(head, given, torch.tensor(pairs))
    return f"{len(pairs)} of {len(ours)} classes taken by name"


def _unlike(given: Classifier, head: nn.Module) -> str | None:
    """Why a classifier is of no use to a head."""
    if given.weight.shape[1] != head.weight.shape[1]:
        return f"the file's is for {given.weight.shape[1]}-d embeddings"
    of_unit = isinstance(head, PartialFC) or head.unit
    if given.unit != of_unit:
        kinds = ("of any length", "of length 1")
        return f"the file's is for embeddings {kinds[given.unit]}, this one {kinds[of_unit]}"
    return None


def _unnamed(theirs: object, ours: list[str] | None, count: int) -> str | None:
    """Why classes can't be matched by their names."""
    if not ours:
        return "the training set has no names for its classes to match the file's by"
    if not isinstance(theirs, list) or not all(isinstance(name, str) for name in theirs):
        return "the file's classes have no names to match the training set's by"
    if len(theirs) != count:
        return f"the file has {count} classes and {len(theirs)} names"
    if len(set(theirs)) < len(theirs) or len(set(ours)) < len(ours):
        return "two classes have one name"
    return None


@torch.no_grad()
def _copy_rows(head: nn.Module, given: Classifier, pairs: torch.Tensor) -> None:
    """pairs: int64 (k, 2), a class and its row in the file. Of class centres only the direction
    counts; their length stays the drawn one, which the rates are made for."""
    if isinstance(head, SoftmaxHead):
        head.weight[pairs[:, 0]] = given.weight[pairs[:, 1]].to(head.weight)
        if head.bias is not None and given.bias is not None:
            head.bias[pairs[:, 0]] = given.bias[pairs[:, 1]].to(head.bias)
        return
    start, count = class_share(head.num_classes)
    pairs = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + count)]
    own, rows = pairs[:, 0] - start, given.weight[pairs[:, 1]].to(head.weight)
    head.weight[own] = F.normalize(rows) * head.weight[own].norm(dim=1, keepdim=True)
