"""What can't be trained, found before anything is written."""

import copy

import torch
from easydict import EasyDict
from torch import nn

from bct.data.image_set import ImageSet
from bct.errors import BctError
from bct.training.frozen import train_mode
from bct.training.heads import no_head


def read_counts(cfg: EasyDict, dataset: ImageSet) -> None:
    """Fills num_classes and num_image in, or checks them against the data."""
    for key, found in (("num_image", len(dataset)), ("num_classes", dataset.num_classes)):
        if cfg[key] not in (None, found):
            raise BctError(
                f"config {cfg.name} says {key} = {cfg[key]}, {dataset.path} has {found}",
                f"remove {key} from the config, or add {key}=None: it is read from the data",
            )
        cfg[key] = found


def check_steps(cfg: EasyDict, batches: int) -> None:
    """Raises BctError if an epoch of so many batches has no step."""
    if batches < cfg.gradient_acc:
        raise BctError(
            f"gradient_acc = {cfg.gradient_acc} needs {cfg.gradient_acc} batches per epoch, "
            f"there are {batches}",
            "give a smaller gradient_acc or batch_size, or a larger data set",
        )


def check_head(cfg: EasyDict, classifies: bool) -> None:
    """Raises BctError for a method that classifies, without a head."""
    if classifies and cfg.head == "none":
        raise no_head()


def check_trained(*modules: nn.Module) -> None:
    """Raises BctError if none of these has a parameter that is trained."""
    if not any(p.requires_grad for module in modules for p in module.parameters()):
        raise BctError("freeze leaves nothing to train", "freeze less of the network")


def check_batch_norm(
    cfg: EasyDict, backbone: nn.Module, method: nn.Module, image: torch.Tensor
) -> None:
    """Raises BctError if a batch norm is left with one value per channel, which has no variance.

    Args:
        image: (1, 3, H, W) or (1, W), what the backbone takes.
    """
    if cfg.batch_size > 1:
        return
    single = any(isinstance(module, nn.BatchNorm1d) for module in method.modules())
    learning = cfg.freeze_statistics_at != 0  # or its statistics are kept from the first step on
    try:
        with torch.no_grad():
            tried = copy.deepcopy(backbone)
            train_mode(tried, learning)
            tried(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        single = True
    if single:
        raise BctError("batch_size = 1: batch norm needs two images per process", "give 2 or more")
