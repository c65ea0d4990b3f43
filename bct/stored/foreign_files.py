"""Feature files of other systems. What a file is, is seen from what it holds.

    floats (n, D)        embeddings; class means (C, D) if it is called ..._avg_feature
    whole numbers (n,)   labels, of any type: AdvBCT writes floats
    bool (n,)            a mask, called ...credible_ratio_90... or ...credible_entropy_50...
    JSON                 AdvBCT's {"3": {"center": [D numbers], "radius": [sorted numbers]}, ...},
                         the numbers being angles if it is called ..._meta_theta_...

Arrays are .npy, which are memory-mapped, the members of an .npz, or the tensors of a file that
torch.save wrote. MixBCT's class centres are JSON in a file called .npy.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bct.errors import BctError, printable
from bct.rows import check_rows
from bct.safe.tensors import read_tensors
from bct.stored.class_table import NUMBERS, class_statistics_dtype
from bct.stored.vector_files import open_array, read_arrays

_MASK = re.compile(r"credible_(ratio|entropy)_(\d{1,3})(?!\d)")
_MASKS = {"ratio": "credible_old_feature", "entropy": "credible_by_entropy"}
_CENTRES = re.compile(r"(rank_\d+_softmax_weight|(softmax_fc|checkpoint)_gpu_\d+)\.(pt|pth)")
_NETWORK = (
    "a network is for tools/import_model.py, a classifier or class centres for its --classifier"
)
_PIECE, _LARGEST = 1 << 20, 1 << 26  # characters read at once, and of one class


class Found(NamedTuple):
    """kind: "embeddings", "labels", "means", "centres", "angles" or of a mask the kind of artefact;
    T: of a mask, else 0. array: what its kind says; of centres and angles, see read_centres, None
    until they are read."""

    kind: str
    file: Path
    array: np.ndarray | None = None
    T: float = 0.0


def read_files(files: list[Path]) -> dict[tuple[str, float], Found]:
    """(kind, T) -> what is in these files.

    Raises BctError for a file that can't be read or holds something else, and for two of a kind.
    """
    found: dict[tuple[str, float], Found] = {}
    for part in (part for file in files for part in _parts(file)):
        key = part.kind, part.T
        if key in found:
            raise BctError(
                f"{found[key].file} and {part.file} both hold {part.kind}",
                "give one of them; a set's features have to be in one file",
            )
        found[key] = part
    return found


def _parts(file: Path) -> Iterator[Found]:
    if file.is_dir():
        raise BctError(
            f"{file} is a folder",
            "give its files; of a model that is there: tools/extract_features.py --model",
        )
    if not file.is_file():
        raise BctError(f"{file} does not exist", "check the path")
    if file.suffix.lower() == ".onnx" or _CENTRES.fullmatch(file.name):
        raise BctError(f"{file} is of a model, by its name, and no embeddings", _NETWORK)
    with open(file, "rb") as opened:
        start = opened.read(64)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        yield Found("angles" if _holds_angles(file) else "centres", file)
    elif start[:6] == b"\x93NUMPY":
        yield _array(file, file.stem, open_array(file))
    elif file.suffix == ".npz":
        for name, array in read_arrays(file).items():
            yield _array(file, f"{file.stem} {name}", array)
    else:
        for name, tensor in _tensors(file, read_tensors(file)):
            tensor = tensor.detach()
            tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            yield _array(file, f"{file.stem} {name}", tensor.numpy())


def _tensors(file: Path, saved: object) -> list[tuple[str, torch.Tensor]]:
    """What torch.save wrote: one tensor, or several in a dict, list or tuple."""
    if isinstance(saved, dict) and any(
        isinstance(value, dict) or str(key).endswith(".weight") for key, value in saved.items()
    ):
        raise BctError(f"{file} holds a model's weights, not embeddings", _NETWORK)
    if not isinstance(saved, dict):
        saved = dict(enumerate(saved if isinstance(saved, list | tuple) else [saved]))
    tensors = []
    for name, value in saved.items():
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if torch.is_tensor(value):
            tensors.append((str(name), value))
    if not tensors or len(tensors) > 4:
        raise BctError(
            f"{file} holds {len(tensors)} tensors, not the embeddings of a set",
            "save one tensor (n, D), or a dict of embeddings and labels",
        )
    return tensors


def _array(file: Path, name: str, array: np.ndarray) -> Found:
    if array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "iub":
        array = array[:, 0]
    mask = _MASK.search(name)
    if array.ndim == 2 and array.dtype.kind == "f" and array.size:
        kind = "means" if re.search(r"avg|average|prototype", name) else "embeddings"
        check_rows(array, str(file), alike=kind == "embeddings")
        return Found(kind, file, array)
    if array.ndim == 1 and array.dtype == bool:
        if mask is None or not 1 <= int(mask[2]) <= 100:
            raise BctError(
                f"{file} is a mask whose name does not say of what",
                "call it ..._credible_ratio_90_feature.npy, or ..._credible_entropy_50_...",
            )
        return Found(_MASKS[mask[1]], file, array, int(mask[2]) / 100)
    if array.ndim == 1 and array.dtype.kind in "iuf" and len(array):
        whole = (array >= 0) & (array < 2**31) & (array == np.floor(array))
        if whole.all():
            return Found("labels", file, np.asarray(array, np.int64))
    raise BctError(
        f"{file} holds {array.dtype} {array.shape}, neither embeddings, labels, a mask nor means",
        "store embeddings as floats (n, D), labels as whole numbers (n,), a mask as bool (n,)",
    )


def _holds_angles(file: Path) -> bool:
    """Of AdvBCT's two JSON files only the name says which it is."""
    return "theta" in file.name


def read_centres(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """AdvBCT's class centres: labels int64 (K,), and what bct.stored.class_statistics has of a
    class, (K,) records. The file is read class by class.

    The file knows the radii that its 1.5 IQR rule has kept, or the angles: `count` is their number,
    too. Of the others, which it does not know, the number is 0 and the largest NaN, as are cosines.

    Raises BctError for a file of anything else.
    """
    labels, centres, numbers = [], [], []
    angles = _holds_angles(file)
    largest = np.pi if angles else 2
    for label, said in _classes(file):
        centre, radii = (_numbers(file, label, said, key) for key in ("center", "radius"))
        if centres and len(centre) != len(centres[0]):
            raise _no_centres(file, f"class {label} has {len(centre)} numbers, the first another")
        if not len(centre) or not len(radii) or (np.diff(radii) < 0).any() or radii[0] < 0:
            raise _no_centres(file, f"the radii of class {label} are not sorted numbers from 0")
        if radii[-1] > largest + 1e-3:
            word = "angle" if angles else "distance of unit vectors"
            raise _no_centres(file, f"{radii[-1]:g}, of class {label}, is no {word}")
        if not 0 < (length := np.linalg.norm(centre.astype(np.float32))) <= 1 + 1e-3:
            why = f"the center of class {label} has the length {length:.3g}"
            raise _no_centres(file, f"{why}, no mean of unit vectors")
        labels.append(label)
        centres.append(centre.astype(np.float32))
        numbers.append((radii[-1], radii[0], len(radii)))
    if not labels or len(set(labels)) < len(labels):
        raise _no_centres(file, "a class is in it twice" if labels else "no class is in it")
    records = np.zeros(len(labels), class_statistics_dtype(len(centres[0])))
    records["centre"] = centres
    last, first, count = zip(*numbers, strict=True)
    known = ("angle", None, "kept_angles") if angles else ("radius", "smallest_radius", "kept")
    for name in NUMBERS:
        records[name] = np.nan
    for name, column in zip((*known, "count"), (last, first, count, count), strict=True):
        if name:
            records[name] = column
    return np.array(labels, np.int64), records


def read_both(radii: Path, angles: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same of AdvBCT's two files of one old model. BctError where their centres differ."""
    labels, records = read_centres(radii)
    order, (of_angles, others) = np.argsort(labels), read_centres(angles)
    labels, records = labels[order], records[order]
    order = np.argsort(of_angles)
    same = np.array_equal(labels, of_angles[order]) and np.allclose(
        records["centre"], others["centre"][order], rtol=0, atol=1e-5
    )
    if not same:
        raise BctError(
            f"{radii} and {angles} have other classes or other centres",
            "give the two files that one run of AdvBCT's extract_feat.py wrote",
        )
    for name in ("angle", "kept_angles"):
        records[name] = others[name][order]
    return labels, records


def _classes(file: Path) -> Iterator[tuple[int, dict]]:
    """{"3": {...}, ...}: class by class. No object lies in a class's, so each ends at its "}"."""
    text, first = "", True
    with open(file, encoding="utf-8-sig", errors="replace") as opened:
        while piece := opened.read(_PIECE):
            *whole, text = (text + piece).split("}")
            for part in whole:
                part = part.strip()
                if not part and not first:  # the last brace
                    if text.strip() or opened.read().strip():
                        raise _no_centres(file, "something follows its end")
                    return
                if part[:1] != ("{" if first else ","):
                    raise _no_centres(file, f"it goes on with {printable(part[:20])!r}")
                yield _one_class(file, part[1:])
                first = False
            if len(text) > _LARGEST:
                raise _no_centres(file, "a class has far too many numbers")
    raise _no_centres(file, "it ends early")


def _one_class(file: Path, text: str) -> tuple[int, dict]:
    try:
        ((label, said),) = json.loads("{" + text + "}}").items()
    except (ValueError, RecursionError):
        raise _no_centres(file, f"{printable(text.strip()[:20])!r} is no class") from None
    if not re.fullmatch(r"0|[1-9]\d{0,8}", label) or not isinstance(said, dict):
        raise _no_centres(file, f"{printable(label[:20])!r} is no class")
    return int(label), said


def _numbers(file: Path, label: int, said: dict, key: str) -> np.ndarray:
    try:
        values = np.array(said[key], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        values = np.full(1, np.nan)
    if values.ndim != 1 or not np.isfinite(values).all() or (np.abs(values) > 1e30).any():
        raise _no_centres(file, f"class {label} has no {key!r} of numbers")
    return values


def _no_centres(file: Path, why: str) -> BctError:
    return BctError(
        f"{file} holds no class centres: {why}",
        'give AdvBCT\'s file: {"<label>": {"center": [...], "radius": [...]}, ...}',
    )
