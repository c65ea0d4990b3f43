"""What a training method is, and how one is found by its name. The class is plain training; methods
override parts of it."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from easydict import EasyDict
from torch import nn

from backbones import get_model
from bct.config import require
from bct.data.image_set import ImageSet
from bct.data.loader import Batch
from bct.data.sets import SyntheticSet, open_images
from bct.errors import BctError
from bct.files import ROOT
from bct.models import widths
from bct.models.embed import embedding_of
from bct.old_model import OldModel
from bct.rows import any_number


class Method(nn.Module):
    """Training the new network alone: the head's loss on its own embeddings.

    A method lives in methods/<Name>/train.py. Parameters and buffers that it registers are trained,
    replicated over ranks and saved with the checkpoint like those of any module.

    Attributes:
        defaults: the config keys it adds, with the paper's values.
        class_sharded: names of the buffers whose rows are this rank's classes, cut as PartialFC
            cuts its centres; checkpoints hold them for all classes.
        maps_gallery: whether it trains a map of the stored old gallery into the space of a new
            model trained alone, instead of a network that sees images.
        dimensions: how it can compare embeddings with old ones of another width, keys of
            bct.models.widths.POLICIES.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    class_sharded: ClassVar[tuple[str, ...]] = ()
    maps_gallery: ClassVar[bool] = False
    dimensions: ClassVar[tuple[str, ...]] = ("equal",)

    @classmethod
    def data(cls, cfg: EasyDict) -> ImageSet:
        """The training set; its item i has row i of every artefact."""
        require(cfg, "rec")
        if cfg.rec == "synthetic":
            require(cfg, "num_image", "num_classes")
            return SyntheticSet(cfg.num_image, cfg.num_classes, cfg.image_size)
        return open_images(cfg.rec, cfg.rec_backend)

    @classmethod
    def needs(cls, cfg: EasyDict) -> tuple[str, ...]:
        """Kinds of old artefacts it reads (keys of bct.stored.artefacts.KINDS)."""
        return ()

    @classmethod
    def takes_a_part(cls, cfg: EasyDict) -> bool:
        """Whether it can train where some images have no old embedding (OldModel.absent)."""
        return False

    @classmethod
    def check_absent(cls, cfg: EasyDict, absent: int) -> None:
        """Raises BctError where so many images lack an old embedding and that can't be."""
        if absent and not cls.takes_a_part(cfg):
            raise BctError(
                f"{absent} images have no old embedding, and {cls.__name__} with these settings "
                "can't do without",
                "use MixBCT, L2, LCE or FCT, or NCCL, BCT (of prototypes) or AdvBCT with "
                'parity="corrected"; or store the embeddings of all images',
            )

    @classmethod
    def classifies(cls, cfg: EasyDict) -> bool:
        """Whether it asks a head for its loss."""
        return True

    @classmethod
    def backbone(cls, cfg: EasyDict, old: OldModel, dtype: torch.dtype | None) -> nn.Module:
        """The network to train: a batch's images -> (B, D), or a NamedTuple with the field
        `embedding`, which forward then gets in place of the embeddings.

        One that is used in another form than it is trained in has a method `exported`, which gives
        the end of that network's name and its state_dict.
        """
        return get_model(cfg.network, cfg.embedding_size, dtype)

    @classmethod
    def output_width(cls, cfg: EasyDict, old: int | None) -> int:
        """Width of the trained network's embeddings, old being that of the old ones."""
        return cfg.embedding_size

    @staticmethod
    def classified(output: torch.Tensor | tuple) -> torch.Tensor:
        """What the head classifies of the network's output, (B, D); here the embedding."""
        return embedding_of(output)

    @classmethod
    def check_dimensions(cls, cfg: EasyDict, old: int) -> None:
        """Raises BctError when new embeddings can't be compared with old ones of this width."""
        if cfg.dimensions not in cls.dimensions:
            raise BctError(
                f"{cls.__name__} can't compare embeddings by dimensions={cfg.dimensions!r}",
                f"choose from {', '.join(cls.dimensions)}",
            )
        widths.check(cls.output_width(cfg, old), old, cfg.dimensions)

    def __init__(self, cfg: EasyDict, old: OldModel):
        super().__init__()
        self.cfg, self.old = cfg, old

    def undecayed(self) -> list[nn.Parameter]:
        """Those of its parameters that weight decay must leave alone."""
        return []

    def begin_epoch(self, epoch: int, embed: Callable[[np.ndarray], np.ndarray]) -> None:
        """Called before each epoch, on all ranks at once.

        What it computes has to be kept in buffers: a run that resumes within an epoch gets them
        from the checkpoint instead of calling this again.

        Args:
            embed: int64 (k,) indices of the training set -> float32 (k, D), the network's
                embeddings of these images as they are (evaluation mode, not mirrored). When one
                rank calls it, all have to; each may ask for other images.
        """

    def fetch(
        self, index: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Reads what a batch needs of the old side; called while the batch is loaded.

        Args:
            index, labels: int64 (B,), on the device.
            rng: this batch's own random stream, on the device.
        """
        return {}

    def forward(
        self, embeddings: torch.Tensor, batch: Batch, head: nn.Module, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The terms of the loss; the loop adds them up and logs each.

        Args:
            embeddings: float32 (B, D), new, not normalised.
            batch: labels (B,), index (B,), epoch, and `old`, the result of fetch.
            head: (embeddings, labels, rng) -> mean classification loss.
            rng: this step's random stream on this rank.
        """
        return {"cls": head(embeddings, batch.labels, rng)}


def present(old: OldModel, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"present": which of these old embeddings (B, D) there are, bool (B,)}; {} if no image lacks
    its own."""
    return {"present": any_number(features)} if old.absent else {}


def load_method(name: str) -> type[Method]:
    """The class `name` of methods/<name>/train.py, e.g. load_method("MixBCT").

    Raises:
        BctError: there is no such method, or this is no clone of the repository: an installed bct
            comes without methods.
    """
    folder = ROOT / "methods"
    spec = importlib.util.find_spec("methods")
    places = spec.submodule_search_locations if spec else None
    if not any(Path(place).resolve() == folder for place in places or ()):
        found = f"another package `methods` ({spec.origin})" if spec else "no package `methods`"
        raise BctError(
            f"can't load the method {name}: Python finds {found}",
            "methods live in a clone of the repository: install that one, with `pip install -e .`",
        )
    names = method_names()
    if name not in names:
        raise BctError(f"there is no method {name}", f"choose from {', '.join(names)}")
    return getattr(importlib.import_module(f"methods.{name}.train"), name)


def method_names() -> list[str]:
    """All methods of this clone, sorted."""
    return sorted(file.parent.name for file in (ROOT / "methods").glob("*/train.py"))


def method_of(config: Path) -> type[Method]:
    """The method whose directory a config file lies in, methods/<name>/configs/x.py."""
    return load_method(config.resolve().parent.parent.name)
