"""What a retrieval test is made of: sets with labels that mean the same, models, embeddings."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bct import distributed
from bct.data import views
from bct.data.image_set import ImageSet
from bct.data.loader import Loader
from bct.data.sets import open_images
from bct.errors import BctError
from bct.files import read_json, sha256, sha256_file
from bct.log import progress
from bct.models.about import view_of_model
from bct.models.weights import load_backbone
from bct.stored.vector_files import is_stored, stored_embeddings


class Items(NamedTuple):
    """What is searched for, and where.

    sets: the queries' and the gallery's; a single one if each image is searched among the others.
    query_labels, gallery_labels: int64 (Q,), (G,); equal ones are the same class. names: of the
    classes by label, None if the data has none.
    """

    sets: list[ImageSet]
    query_labels: np.ndarray
    gallery_labels: np.ndarray
    names: list[str] | None

    @property
    def leave_one_out(self) -> bool:
        return len(self.sets) == 1


def open_items(queries: str | Path, gallery: str | Path | None = None) -> Items:
    """Opens the sets. If both name their classes, equal names are equal classes, whatever their
    labels; if neither does, equal labels are.

    Raises BctError: no such set; one with and one without names.
    """
    sets = [open_images(path) for path in (queries, gallery) if path]
    names = [s.class_names for s in sets]
    labels = [s.labels for s in sets]
    if len({n is None for n in names}) > 1:
        raise BctError(
            f"of {queries} and {gallery} one names its classes, the other one does not",
            "give two sets with class names, or two without whose labels mean the same",
        )
    if len(sets) == 2 and names[0] is not None:
        every = {name: k for k, name in enumerate(dict.fromkeys([*names[0], *names[1]]))}
        labels = [
            np.array([every[name] for name in known], np.int64)[own]
            for known, own in zip(names, labels, strict=True)
        ]
        names = [list(every)]
    return Items(sets, labels[0], labels[-1], names[0])


def class_names(path: str | Path) -> list[str] | None:
    """Names in a model.json, or a JSON list of them; None if it has none or does not exist.

    Raises BctError for anything else.
    """
    if not Path(path).is_file():
        return None
    said = read_json(path)
    names = said.get("class_names") if isinstance(said, dict) else said
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise BctError(f"{path} has no list of class names", "give a model.json or a JSON list")
    return names


class Model(NamedTuple):
    """label: its name in the tables. view: how its network sees an image; None: stored embeddings.

    A stored model's file is one .npy or .npz, or two with a comma between, for two sets.
    """

    label: str
    file: str
    network: str | None
    sha256: str
    view: views.View | None

    @property
    def key(self) -> tuple:
        """Equal keys, equal embeddings."""
        return self.sha256, self.view


def open_model(label: str, file: str, network: str | None, **view: int | str | None) -> Model:
    """Finds a model. view: size, crop, pixels of networks whose model.json says none, as those of
    others; None: as for faces.

    Raises BctError: no such file, or a model.json whose view is not ours.
    """
    paths = file.split(",") if is_stored(file) else [file]
    for path in paths:
        if not Path(path).is_file():
            raise BctError(f"model {path} does not exist", "check the path, or train it first")
    digests = [sha256_file(path) for path in paths]
    digest = digests[0] if len(digests) == 1 else sha256(*digests)
    if is_stored(file):
        return Model(label, file, None, digest, None)
    about = Path(file).with_suffix(".json")
    if about.is_file() and "view" in read_json(about):
        return Model(label, file, network, digest, view_of_model(file))
    given = {key: value for key, value in view.items() if value is not None}
    return Model(label, file, network, digest, views.View(**given))


class Sides(NamedTuple):
    """A model's embeddings (Q, D), (G, D); one and the same array where there is one set."""

    query: np.ndarray
    gallery: np.ndarray


def embed(
    models: Sequence[Model],
    sets: list[ImageSet],
    device: torch.device,
    dtype: torch.dtype | None = None,
    batch_size: int = 128,
    num_workers: int = 2,
) -> dict[str, Sides]:
    """Label -> embeddings, not normalised; on every rank, while the ranks share the work.

    Models that see images alike share the decoding. One that is given twice has one array.

    Raises BctError: weights that do not load; an image that can't be read; stored embeddings of
    other sets; fewer images than ranks.
    """
    found: dict[tuple, list[np.ndarray]] = {}
    networks: dict[views.View, dict[tuple, torch.nn.Module]] = {}
    for model in models:
        if model.view is None:
            found[model.key] = stored(model, sets)
        elif model.key not in (alike := networks.setdefault(model.view, {})):
            network = load_backbone(model.file, model.network, dtype, fold=True)
            alike[model.key] = network.to(device)
    for dataset, (view, alike) in itertools.product(sets, networks.items()):
        loader = Loader(
            dataset, batch_size, device, num_workers=num_workers, train=False, view=view
        )
        for key, rows in _embed_set(loader, dataset, alike).items():
            found.setdefault(key, []).append(rows)
    return {m.label: Sides(found[m.key][0], found[m.key][-1]) for m in models}


@torch.inference_mode()
def _embed_set(
    loader: Loader, dataset: ImageSet, networks: dict[tuple, torch.nn.Module]
) -> dict[tuple, np.ndarray]:
    """Embeddings of a set by each network, float32 (n, D)."""
    if len(dataset) < distributed.world_size():
        raise BctError(
            f"{dataset.path} has {len(dataset)} images for {distributed.world_size()} ranks",
            "start no more ranks than there are images",
        )
    parts = {key: [] for key in networks}
    for batch in progress(loader.epoch(), Path(dataset.path).name, len(loader), "batch"):
        for key, network in networks.items():
            parts[key].append(network(batch.images).float())
    return {
        key: distributed.all_gather_shares(torch.cat(rows), len(dataset)).cpu().numpy()
        for key, rows in parts.items()
    }


def stored(model: Model, sets: list[ImageSet]) -> list[np.ndarray]:
    """Stored embeddings of each set; of a gallery alone if that is all that is asked for."""
    files = model.file.split(",")
    if len(files) != len(sets):
        raise BctError(
            f"{model.file} is {len(files)} file(s) of embeddings for {len(sets)} set(s)",
            "for two sets give two with a comma, queries.npy,gallery.npy; for one set one",
        )
    return [stored_embeddings(*pair) for pair in zip(files, map(len, sets), strict=True)]
