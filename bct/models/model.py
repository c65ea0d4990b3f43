"""A model to evaluate: a trained network, or embeddings that it has left in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from backbones import NETWORKS
from bct.data.image_set import ImageSet, Joined
from bct.data.images import Size
from bct.data.views import View
from bct.errors import BctError
from bct.files import sha256, sha256_file
from bct.models.about import model_in, said_beside, view_of_model
from bct.models.embed import embed_models
from bct.models.reference_checkpoints import TORCHSCRIPT
from bct.models.weights import load_backbone, network_of
from bct.rows import check_rows
from bct.stored.fingerprint import Fingerprint
from bct.stored.stacked import Stacked
from bct.stored.vector_files import is_stored, open_vectors

_COPIED = 1 << 30  # bytes of two files' rows that may be put into one array


@dataclass(frozen=True)
class Model:
    """A trained network by its file, loaded when it is first used.

    Attributes:
        file: weights; or embeddings, one .npy, .npz or .fvecs, or two with a comma between for the
            two sets of a search (queries.npy,gallery.npy), or a third for distractors.
        network: its name, None where the file or its model.json says it.
        sha256: of the file's bytes.
        view: how the network sees an image; None for stored embeddings.
        dtype: of its body, None for fp32.
        pixels: the view's, if a file or a caller says so; None: an ONNX graph says what it wants.
    """

    file: str
    network: str | None
    sha256: str
    view: View | None
    dtype: torch.dtype | None = None
    pixels: str | None = None

    @cached_property
    def backbone(self) -> nn.Module:
        """The network, ready to infer, on the CPU. BctError: see bct.models.weights."""
        if self.view is None:
            raise BctError(
                f"{self.file} holds embeddings, not a network",
                "give the model itself: its model.pt or .onnx",
            )
        return load_backbone(self.file, self.network, self.dtype, True, self.view.size, self.pixels)

    @cached_property
    def width(self) -> int:
        """D, of its embeddings."""
        if self.view is None:
            return open_vectors(self.file.split(",")[0], finite=False)[0].shape[1]
        return self.backbone.embedding_size

    @property
    def fingerprint(self) -> Fingerprint:
        """Which space its embeddings live in."""
        view = self.view and dict(zip(("size", "crop", "pixels"), self.view.seen, strict=True))
        return Fingerprint(self.sha256, view, self.width)

    def embed(self, images: ImageSet, cache: str | Path | None = None) -> np.ndarray:
        """float32 (N, D), not normalised, memory-mapped; see bct.models.embed.embed_models."""
        return embed_models({"x": self}, images, cache)["x"]

    def rows(self, images: ImageSet) -> np.ndarray | Stacked:
        """Stored embeddings of these images, float (N, D); of large files they are not copied.

        Raises BctError for another number of rows, and for one file where there are two sets; like
        bct.rows.check_rows.
        """
        files = self.file.split(",")
        sets = images.sets if isinstance(images, Joined) else [images]
        if len(files) > len(sets) and isinstance(sets[-1], Joined):
            sets = [*sets[:-1], *sets[-1].sets]
        if len(files) != len(sets):
            raise BctError(
                f"{self.file} is {len(files)} file(s) of embeddings for {len(sets)} set(s)",
                "for two sets give two with a comma, queries.npy,gallery.npy; for one set one",
            )
        parts = []
        for file, of in zip(files, sets, strict=True):
            parts.append(rows_of(file, of))
            check_rows(parts[-1], file, lambda row, of=of: of.describe(row), alike=False)
        if len(parts) == 1:
            return parts[0]
        if len({part.shape[1] for part in parts}) > 1:
            widths = " and ".join(str(part.shape[1]) for part in parts)
            raise BctError(f"{self.file} have {widths} dimensions", "give those of one model")
        large = sum(part.nbytes for part in parts) > _COPIED
        return Stacked(parts) if large else np.concatenate(parts)


def rows_of(file: str, images: ImageSet, column: bool = False) -> np.ndarray:
    """Stored embeddings of a set, or those of them that are left of its whole list.

    Args:
        column: there is a number per image, not a vector; all have to be finite.

    Raises BctError for another number of rows; like open_vectors.
    """
    if images.listed is None:
        return open_vectors(file, len(images), column, finite=column)[0]
    total, kept = images.listed
    found = open_vectors(file, column=column, finite=column)[0]
    if len(found) == total:
        return found[kept]
    if len(found) != len(images):
        raise BctError(
            f"{file} has {len(found)} rows for {len(images)} images, or for the {total} of the "
            "list that these are of",
            "store one row for each image, in their order",
        )
    return found


def open_model(
    file: str | Path,
    network: str | None = None,
    dtype: torch.dtype | None = None,
    **view: Size | str | None,
) -> Model:
    """Finds a model; its network is loaded later.

    Args:
        file, network, dtype: see Model; or a model's folder.
        view: size, crop, pixels of a network whose model.json says none; None: as for faces.

    Raises BctError: no such file, a model.json whose view is not ours, and like refuse_unsaid_view.
    """
    file = str(model_in(file) if Path(file).is_dir() else file)
    paths = file.split(",") if is_stored(file) else [file]
    for path in paths:
        if not Path(path).is_file():
            raise BctError(f"model {path} does not exist", "check the path, or train it first")
    digests = [sha256_file(path) for path in paths]
    digest = digests[0] if len(digests) == 1 else sha256(*digests)
    if is_stored(file):
        return Model(file, None, digest, None)
    if "view" in said_beside(file):
        said = view_of_model(file)
        return Model(file, network, digest, said, dtype, said.pixels)
    given = {key: value for key, value in view.items() if value is not None}
    refuse_unsaid_view(file, network, given.get("pixels"))
    return Model(file, network, digest, View(**given), dtype, given.get("pixels"))


def refuse_unsaid_view(file: str | Path, network: str | None, pixels: str | None) -> None:
    """Raises BctError for a network that is none for faces, if nobody says how it sees an image."""
    file = Path(file)
    known = file.suffix.lower() == ".onnx" or is_stored(str(file)) or "view" in said_beside(file)
    if pixels or known:
        return
    name = network_of(file, network).partition("+")[0]
    if name not in (*NETWORKS, TORCHSCRIPT, "fct"):
        raise BctError(
            f"{file}, a {name}, does not say how it sees an image",
            "say it: --pixels imagenet, with --size 224 --crop resized where there are these; or "
            "give the folder that tools/import_model.py makes of it, or that of a run of ours",
        )


def refuse_other_view(file: str | Path, **view: int | str | None) -> None:
    """Raises BctError for size, crop or pixels that the model.json beside the file contradicts.

    open_model takes what the model.json says: several models may share one such option.
    """
    if is_stored(str(file)) or "view" not in said_beside(file):
        return
    said = view_of_model(file)
    for key, value in view.items():
        if value not in (None, getattr(said, key)):
            about = Path(file).with_suffix(".json")
            raise BctError(
                f"--{key} {value} is given, {about.name} says {key} {getattr(said, key)}",
                f"leave --{key} out, or mend {about}",
            )


def open_models(
    files: list[tuple[str, str | Path, str | None]],
    dtype: torch.dtype | None = None,
    **view: Size | str | None,
) -> dict[str, Model]:
    """Label -> model, of (label, file, network). BctError like open_model, and for equal labels."""
    labels = [label for label, _, _ in files]
    if len(set(labels)) < len(labels):
        raise BctError(
            f"the models are called {', '.join(labels)}: two have one name",
            "rename a file or its folder, so that the tables can tell them apart",
        )
    return {label: open_model(file, network, dtype, **view) for label, file, network in files}


def described(models: Mapping[str, Model]) -> dict[str, dict[str, str]]:
    """What results say of their models: label -> file, sha256 and, if not as usual, pixels."""
    said = {label: {"file": m.file, "sha256": m.sha256} for label, m in models.items()}
    for label, model in models.items():
        if model.pixels and (model.pixels != "face" or Path(model.file).suffix == ".onnx"):
            said[label]["pixels"] = model.pixels
    return said
