"""The golden protocols of landmarks and people, as Relevance: BCT_SHARED's landmarks_reid."""

import csv
import json
import pickle
import re
from pathlib import Path

import numpy as np

from bct.metrics.relevance import ByClass, ByItem, Rows

READINGS = {"E": (["easy"], ["junk", "hard"]), "M": (["easy", "hard"], ["junk"])}
READINGS["H"] = (["hard"], ["junk", "easy"])


def folder(shared: Path) -> Path:
    return shared / "golden" / "landmarks_reid"


def expected(shared: Path) -> dict:
    return json.loads((folder(shared) / "protocols/expected.json").read_text())


def inputs(shared: Path, name: str = "inputs") -> dict[str, np.ndarray]:
    with np.load(folder(shared) / f"protocols/{name}.npz") as arrays:
        return dict(arrays)


def gnd_of(shared: Path, name: str) -> dict:
    """A real ground truth file. Our own, so a plain pickle is safe here."""
    with open(shared / f"data/landmarks/revisited/gnd_{name}.pkl", "rb") as file:
        return pickle.load(file)


def readings(gnd: list[dict]) -> dict[str, ByItem]:
    """Easy, medium and hard, as Revisited defines them."""
    return {
        name: ByItem(*(Rows.of_lists([_joined(one, keys) for one in gnd]) for keys in sides))
        for name, sides in READINGS.items()
    }


def _joined(one: dict, keys: list[str]) -> np.ndarray:
    return np.concatenate([np.asarray(one[key], np.int64).ravel() for key in keys])


def people(query: list[str], gallery: list[str]) -> ByClass:
    """Market-1501: positives are the person's images by other cameras, those of its own camera are
    ignored. Names are <person>_c<camera>..."""
    pids, cameras = zip(*map(_person, query), strict=True)
    others, other_cameras = (np.array(x) for x in zip(*map(_person, gallery), strict=True))
    ignored = [
        np.flatnonzero((others == pid) & (other_cameras == camera))
        for pid, camera in zip(pids, cameras, strict=True)
    ]
    return ByClass(np.array(pids), others, ignored=Rows.of_lists(ignored))


def _person(name: str) -> tuple[int, int]:
    pid, camera = re.match(r"(?:.*/)?(-?\d+)_c(\d)", name).groups()
    return int(pid), int(camera)


def kept(names: list[str]) -> np.ndarray:
    """Which names are of a gallery: not the junk, -1."""
    return np.array([_person(name)[0] >= 0 for name in names])


def market_names(shared: Path, part: str) -> list[str]:
    with open(shared / f"data/reid/market1501_{part}.csv", newline="") as file:
        return [row[1] for row in csv.reader(file)]


def fvecs(file: Path) -> np.ndarray:
    """Rows of (int32 D, D float32)."""
    raw = np.fromfile(file, np.int32)
    return raw.reshape(-1, raw[0] + 1)[:, 1:].view(np.float32)
