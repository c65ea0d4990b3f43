"""The classifier that a model was trained with, from whatever files hold it.

A classifier is linear: logits W e + b. Class centres of a margin softmax (insightface's, MixBCT's
and ours) and the `kernel` of openBCT give s cos(w, e); they become W = s w / |w| of embeddings of
length 1. insightface and MixBCT keep the centres of each rank in a file of its own, whose name has
the rank's number; one behind the other they are all classes.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from bct.errors import BctError
from bct.models.reference_checkpoints import is_torchscript, reference_classifier, said_by
from bct.safe.tensors import read_tensors, unwrapped

CLASSIFIER = "classifier.pt"  # beside the weights of an imported model
SCALE = 64.0  # of insightface's and MixBCT's margin softmax; theirs is not in their files
_KERNEL = 30.0  # of openBCT's
_RANK = re.compile(r"(?:rank_(\d+)_softmax_weight|(?:softmax_fc|checkpoint)_gpu_(\d+))\.(?:pt|pth)")
_CENTRES = "state_dict_softmax_fc"  # in insightface's checkpoints


class Classifier(NamedTuple):
    """weight: float32 (K, d). bias: float32 (K,) or None. unit: of embeddings of length 1."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    unit: bool

    def tensors(self) -> dict[str, torch.Tensor]:
        """As a file holds them, for reference_classifier."""
        return {"weight": self.weight, **({} if self.bias is None else {"bias": self.bias})}


def read_classifier(
    files: Sequence[str | Path], scale: float | None = None, network: str | None = None
) -> Classifier:
    """The classifier in these files.

    Args:
        files: one that reference_classifier reads; or a checkpoint of ours; or the class centres of
            all ranks, in any order.
        scale: s of a cosine classifier. A classifier that does not look like one is taken for one,
            too, if it is given. None: what the file says, else that of the system it is of.
        network: "torchscript" allows such an archive, see load_torchscript.

    Raises:
        BctError: no classifier in it; ranks that are missing or do not belong together.
    """
    paths = [Path(file) for file in files]
    if len(paths) > 1 or _RANK.fullmatch(paths[0].name):
        return _cosine(joined_centres(paths), scale or SCALE)
    path = paths[0]
    if re.search(r"(?<!avg)_feat(ure)?\.npy$", path.name):
        raise BctError(
            f"{path} has a row for each image, by its name, not for each class",
            "give class means, ..._avg_feature.npy: tools/import_features.py, then "
            "tools/average_features.py",
        )
    if not path.is_file() or path.suffix.lower() == ".npy" or is_torchscript(path):
        return _linear(*reference_classifier(path, network), scale)
    saved = read_tensors(path)
    if isinstance(saved, dict) and isinstance(saved.get("record"), dict) and "head" in saved:
        return _of_checkpoint(path, saved, scale)
    state = {} if torch.is_tensor(saved) else unwrapped(path, saved)
    kernel = getattr(state.get("kernel"), "ndim", 0) == 2
    own = _KERNEL if kernel else said_by(saved).scale
    return _linear(*reference_classifier(path, network), scale or own)


def classifier_file(weights: Path) -> Path:
    """Where the classifier of a model is: in a file of its own beside the weights, else in theirs,
    if they have one."""
    apart = weights.with_name(CLASSIFIER)
    return apart if apart.is_file() else weights


def is_of_rank(file: Path) -> bool:
    """Whether a file's name says that it holds one rank's part of the class centres."""
    return _RANK.fullmatch(file.name) is not None


def joined_centres(files: Sequence[Path]) -> torch.Tensor:
    """Class centres of all ranks, float32 (C, D), in the order of the classes.

    Raises BctError for names without the rank's number, a rank that is missing or there twice, and
    widths that differ.
    """
    ranks: dict[int, torch.Tensor] = {}
    for file in files:
        named = _RANK.fullmatch(file.name)
        if named is None:
            raise BctError(
                f"{file.name} does not say which rank's class centres it holds",
                "give one file, or those of all ranks: rank_0_softmax_weight.pt, "
                "softmax_fc_gpu_0.pt or checkpoint_gpu_0.pt, ...",
            )
        rank = int(named[1] or named[2])
        if rank in ranks:
            raise BctError(f"there are two files of rank {rank}", "give each rank's file once")
        ranks[rank] = _centres(file)
    missing = sorted(set(range(max(ranks) + 1)) - ranks.keys())
    if missing:
        raise BctError(
            f"the class centres of rank {missing[0]} are missing: there are ranks "
            f"{', '.join(map(str, sorted(ranks)))}",
            "give the files of all ranks; each holds a part of the classes",
        )
    for file in files:
        following = file.with_name(re.sub(r"\d+", str(max(ranks) + 1), file.name))
        if following.is_file():
            raise BctError(
                f"{following} was not given, but lies beside the files of the other ranks",
                "give the files of all ranks; each holds a part of the classes",
            )
    parts = [ranks[rank] for rank in sorted(ranks)]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) > 1:
        raise BctError(
            f"class centres of {' and '.join(map(str, widths))} dimensions",
            "give the files of one training",
        )
    return torch.cat(parts)


def _centres(file: Path) -> torch.Tensor:
    saved = read_tensors(file)
    if isinstance(saved, dict):
        saved = saved.get(_CENTRES, saved)
    if isinstance(saved, dict):
        saved = saved.get("weight")
    if not torch.is_tensor(saved) or saved.dim() != 2 or not saved.is_floating_point():
        raise BctError(
            f"{file} holds no class centres, one row per class",
            "give what insightface or MixBCT wrote beside the network",
        )
    return saved.detach().float()


def _of_checkpoint(path: Path, saved: dict[str, Any], scale: float | None) -> Classifier:
    """From a checkpoint of ours, whose record says what its head is."""
    identity, head = saved["record"].get("identity"), saved["head"]
    said = identity if isinstance(identity, dict) else {}
    weight = head.get("weight") if isinstance(head, dict) else None
    if not torch.is_tensor(weight) or weight.dim() != 2:
        raise BctError(f"{path} has no classifier", "give class means of the embeddings instead")
    if said.get("head") == "margin":
        own = said.get("scale")
        return _cosine(weight.float(), scale or (own if isinstance(own, float) else SCALE))
    return Classifier(weight.float(), head.get("bias"), bool(said.get("head_unit")))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, scale: float | None) -> Classifier:
    if scale is None:
        return Classifier(weight, bias, False)
    if bias is not None:
        raise BctError("a cosine classifier has no bias", "leave the scale out: it is a linear one")
    return _cosine(weight, scale)


def _cosine(centres: torch.Tensor, scale: float) -> Classifier:
    if not centres.norm(dim=1).all():
        raise BctError(
            f"class {int((centres.norm(dim=1) == 0).nonzero()[0])} has a centre of zeros",
            "give the centres of a finished training, of all classes",
        )
    return Classifier(F.normalize(centres) * scale, None, True)
