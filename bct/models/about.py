"""What a config and a model.json say of a network: how it sees an image."""

from pathlib import Path
from typing import Any

from easydict import EasyDict

from backbones import NETWORKS
from bct.data.images import SIZE, size_in_words
from bct.data.views import AUGMENT, CROPS, PIXELS, View
from bct.errors import BctError
from bct.files import read_json, sha256_file
from bct.keys import LARGEST_IMAGE, image_size
from bct.safe.tensor_files import shown

_WEIGHTS = ("model.pt", "model.onnx")


def view_of_config(cfg: EasyDict) -> View:
    """The view that a config trains with. BctError for a size that its network does not take."""
    if cfg.network in NETWORKS and cfg.image_size != SIZE:
        raise BctError(
            f"network {cfg.network} takes images of {SIZE} pixels, image_size is "
            f"{size_in_words(cfg.image_size)}",
            f"set image_size={SIZE}, or a network for other images, such as resnet18",
        )
    return View(cfg.image_size, *AUGMENT[cfg.augment], cfg.pixels)


def view_in_manifest(view: View) -> list[Any] | None:
    """What a manifest of features says of their model's view: None: as faces are seen, and as
    manifests have it from before they said so."""
    return None if view.seen == View().seen else view.seen


def model_in(folder: str | Path) -> Path:
    """The weights in a model's folder: model.pt or model.onnx; of both, as where a run's network
    was exported, the one whose digest model.json has. BctError without, and if it has neither's."""
    if Path(folder).is_file():
        raise BctError(
            f"{folder} is a file, not a model's folder",
            f"import it: python tools/import_model.py {folder} -o work_dirs/old, and name that",
        )
    if not Path(folder).exists():
        raise BctError(
            f"there is no folder {folder}",
            "check the path; python tools/import_model.py makes one of a model from elsewhere",
        )
    there = _weights_in(folder)
    if len(there) > 1:
        said = said_beside(there[0]).get("sha256")
        there = [file for file in there if sha256_file(file) == said] or there
    if len(there) == 1:
        return there[0]
    if there:
        raise BctError(
            f"{folder} holds {' and '.join(_WEIGHTS)}", "name the one that is meant, or move one"
        )
    raise BctError(
        f"{folder} holds no model, neither {' nor '.join(_WEIGHTS)}",
        "train it, or bring one from elsewhere: python tools/import_model.py <weights> -o "
        f"{folder}",
    )


def holds_model(folder: str | Path) -> bool:
    """Whether a model's folder has its weights; those of embeddings alone have not."""
    return bool(_weights_in(folder))


def _weights_in(folder: str | Path) -> list[Path]:
    return [file for name in _WEIGHTS if (file := Path(folder) / name).is_file()]


def said_beside(weights: str | Path) -> dict[str, Any]:
    """The model.json beside these weights; {} if there is none, or no object in it."""
    about = Path(weights).with_suffix(".json")
    said = read_json(about) if about.is_file() else {}
    return said if isinstance(said, dict) else {}


def described_in(weights: str | Path) -> dict[str, Any]:
    """The model.json beside these weights, somebody's or ours: what it says is of the right type.

    class_names alone say num_classes, too. Raises BctError, naming file and entry.
    """
    about = Path(weights).with_suffix(".json")
    said = read_json(about)
    if not isinstance(said, dict):
        raise BctError(f"{about} says nothing of a model", "bring the right one back")
    names, count = said.get("class_names"), said.get("num_classes")
    if isinstance(names, list) and count is None:
        said["num_classes"] = count = len(names)
    named = names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names))
    fits = {
        "network": isinstance(said.get("network", ""), str),
        "class_names": named and (names is None or len(names) == count),
        "num_classes": count is None or (type(count) is int and count > 0),
        "head_unit": said.get("head_unit") in (None, True, False),
    }
    for key, good in fits.items():
        if not good:
            raise BctError(
                f"{about}: {key} can't be {shown(repr(said[key]), 60)}",
                "num_classes is a number, class_names a list of as many names or null, network a "
                "name, head_unit true or false",
            )
    return said


def view_of_model(weights: str | Path) -> View:
    """The view in the model.json beside these weights; that of faces if there is none.

    Raises BctError for one that is not ours.
    """
    said = said_beside(weights)
    if "view" not in said:
        return View()
    try:
        view = View(**said["view"])
        fits = view.crop in CROPS and view.pixels in PIXELS and type(view.mirror) is bool
        view = view._replace(size=image_size(None).check(view.size))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        about = Path(weights).with_suffix(".json")
        raise BctError(
            f"{about} holds no view of ours: {shown(said['view'], 100)}",
            f'write it like {{"size": {SIZE}, "crop": "none", "pixels": "face"}}; '
            f"size, or each side of [height, width], is at most {LARGEST_IMAGE}",
        )
    return view
