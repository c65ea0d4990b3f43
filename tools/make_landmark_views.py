"""Makes a set of landmarks for retrieval, in minutes' size, from photographs shipped with us.

    python tools/make_landmark_views.py work_dirs/landmark_views/data
    python tools/make_landmark_views.py /data/views --seed 1

Each of 20 landmarks is warped from a single photograph (docs/landmark_photos, public domain), as
are five other scenes: easy pictures, which show that everything runs and what is compatible, and
are no evidence of how well anything retrieves. A view is 112 x 112 pixels; tools/demo/landmarks.py
says what happens to it. OUT gets the same images in two layouts:

    gldv2/train/a/b/c/<id>.jpg    10 views of each landmark
    gldv2/label_20.txt            their labels 0 ... 19, a line an image
    gldv2/train_clean.csv         the same as landmark_id,images; the ids are not the labels
    gldv2/train_label_to_category.csv    landmark_id,category: the photograph
    gldv2/index/, index.csv       the gallery: 9 views of each landmark (6 of two of them, which
                                  have no easy one), 6 of each other scene
    gldv2/test/, retrieval_solution_v2.1.csv    2 queries of each landmark, by turns Private,
                                  Public, Private, and one that is Ignored
    revisited/jpg/<id>.jpg        gallery and queries
    revisited/gnd_landmarkviews.pkl    imlist, qimlist and, for each query, its bbx and the easy,
                                  hard and junk views of its landmark
    landmark_views.json           how all this was made

A query's landmark fills the box `bbx` of a larger picture of another scene: who does not cut it out
finds little. Equal seeds give equal bytes; another one gives other views, labels and ids.
"""

import csv
import pickle
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from bct.command import Parser, file_path, run_cli, takes
from bct.errors import BctError
from bct.files import ROOT, sha256
from bct.keys import whole
from tools.demo.drawn_set import make, stream
from tools.demo.landmarks import view, widened

VERSION = 1  # raise it when the same seed gives other bytes
PHOTOS = ROOT / "docs" / "landmark_photos"
SCENES = (  # that are nobody's answer
    *("floating-market-vietnam", "sukhoi-superjet-100", "toronto-skyline"),
    *("tower-sunset", "train-e-usa"),
)
LANDMARKS = 20
TRAIN, QUERIES, OF_SCENE = 10, 2, 6  # views of a landmark, of a landmark, of another scene
EASY, HARD, JUNK = (0.05, 0.33), (0.38, 0.70), (0.86, 1.0)  # difficulties
OF_INDEX = (*[("easy", EASY)] * 3, *[("hard", HARD)] * 4, *[("junk", JUNK)] * 2)
NO_EASY = (4, 13)  # labels
USAGE = ("Private", "Public", "Private")
SIDE, QUALITY = 112, 88

_ORDER, _TRAIN, _INDEX, _TEST, _SHUFFLE = range(5)  # what a random stream is for


class View(NamedTuple):
    """An image of the set: its id, JPEG, photograph, and easy, hard, junk or none."""

    id: str
    jpeg: bytes
    photo: str
    kind: str


def photographs() -> dict[str, Image.Image]:
    """By name, widened. BctError if any is missing."""
    files = {path.stem: path for path in sorted(PHOTOS.glob("*.jpg"))}
    if len(files) != LANDMARKS + len(SCENES) or not files.keys() >= set(SCENES):
        raise BctError(
            f"{PHOTOS} holds {len(files)} photographs, not this set's {LANDMARKS + len(SCENES)}",
            "check that folder out again",
        )
    return {name: widened(Image.open(path)) for name, path in files.items()}


def draw(folder: Path, seed: int) -> dict[str, int]:
    """Writes the set, returns counts."""
    photos = photographs()
    names = [name for name in photos if name not in SCENES]
    names = [names[i] for i in stream(seed, _ORDER).permutation(LANDMARKS)]  # by label

    def shoot(use: int, photo: str, number: int, kind: str, span: tuple[float, float]) -> View:
        rng = stream(seed, use, sorted(photos).index(photo), number)
        pixels = view(photos[photo], rng.uniform(*span), rng, SIDE)
        return View(_id(seed, use, photo, number), _jpeg(pixels), photo, kind)

    train = [[shoot(_TRAIN, n, k, "", (0, 0.75)) for k in range(TRAIN)] for n in names]
    index = []
    for label, name in enumerate(names):
        for k, (kind, span) in enumerate(OF_INDEX):
            if kind != "easy" or label not in NO_EASY:
                index.append(shoot(_INDEX, name, k, kind, span))
    for name in SCENES:
        index += [shoot(_INDEX, name, k, "none", (0, 0.7)) for k in range(OF_SCENE)]
    index = [index[i] for i in stream(seed, _SHUFFLE).permutation(len(index))]
    asked = [_query(seed, photos, name, k) for name in names for k in range(QUERIES)]
    queries, boxes = zip(*asked, strict=True)
    ignored = shoot(_TEST, SCENES[0], 0, "none", (0.5, 0.5))

    _write_training(folder / "gldv2", names, train, seed)
    _write_search(folder / "gldv2", index, queries, ignored)
    _write_revisited(folder / "revisited", index, queries, boxes)
    return {"training images": LANDMARKS * TRAIN, "in the gallery": len(index),
            "queries": len(queries)}  # fmt: skip


def _query(
    seed: int, photos: dict[str, Image.Image], name: str, number: int
) -> tuple[View, list[float]]:
    """A landmark within a larger picture of another scene, and the box that it fills."""
    rng = stream(seed, _TEST, sorted(photos).index(name), number)
    around = view(photos[SCENES[rng.integers(len(SCENES))]], 0.9, rng, 220)
    height, width = (int(rng.integers(*span)) for span in ((140, 180), (150, 200)))
    picture = np.array(Image.fromarray(around).resize((width, height)))
    x, y = int(rng.integers(0, width - SIDE)), int(rng.integers(0, height - SIDE))
    picture[y : y + SIDE, x : x + SIDE] = view(photos[name], rng.uniform(0.1, 0.55), rng, SIDE)
    box = [float(x), float(y), float(x + SIDE), float(y + SIDE)]
    return View(_id(seed, _TEST, name, number), _jpeg(picture), name, ""), box


def _write_training(root: Path, names: list[str], train: list[list[View]], seed: int) -> None:
    ids = np.sort(stream(seed, _ORDER, 1).choice(200_000, LANDMARKS, replace=False)).tolist()
    lines = []
    for label, views in enumerate(train):
        lines += [f"{_save(root, 'train', one)} {label}\n" for one in views]
    (root / "label_20.txt").write_text("".join(lines), encoding="ascii")
    rows = [[i, " ".join(one.id for one in views)] for i, views in zip(ids, train, strict=True)]
    _write_csv(root / "train_clean.csv", ["landmark_id", "images"], rows)
    rows = zip(ids, names, strict=True)
    _write_csv(root / "train_label_to_category.csv", ["landmark_id", "category"], rows)


def _write_search(root: Path, index: list[View], queries: tuple[View, ...], ignored: View) -> None:
    """GLDv2's gallery, queries and solution: what is junk elsewhere is no answer there."""
    for part, views in (("index", index), ("test", (*queries, ignored))):
        for one in views:
            _save(root, part, one)
    _write_csv(root / "index.csv", ["id"], [[one.id] for one in index])
    rows = []
    for k, query in enumerate(queries):
        found = [o.id for o in index if o.photo == query.photo and o.kind in ("easy", "hard")]
        rows.append([query.id, " ".join(found), USAGE[k % len(USAGE)]])
    rows.append([ignored.id, "None", "Ignored"])
    _write_csv(root / "retrieval_solution_v2.1.csv", ["id", "images", "Usage"], rows)


def _write_revisited(
    root: Path, index: list[View], queries: tuple[View, ...], boxes: tuple[list[float], ...]
) -> None:
    (root / "jpg").mkdir(parents=True)
    for one in (*index, *queries):
        (root / "jpg" / f"{one.id}.jpg").write_bytes(one.jpeg)
    truth = []
    for query, box in zip(queries, boxes, strict=True):
        of_kind = {
            kind: [k for k, o in enumerate(index) if (o.photo, o.kind) == (query.photo, kind)]
            for kind in ("easy", "hard", "junk")
        }
        truth.append({"bbx": box, **of_kind})
    lists = {"imlist": [o.id for o in index], "qimlist": [o.id for o in queries]}
    text = pickle.dumps({"gnd": truth, **lists}, protocol=2)  # as the published ones are
    (root / "gnd_landmarkviews.pkl").write_bytes(text)


def _id(seed: int, use: int, photo: str, number: int) -> str:
    """16 hexadecimal digits, as GLDv2's."""
    return sha256(f"{seed}/{use}/{photo}/{number}")[:16]


def _jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY)


def _save(root: Path, part: str, one: View) -> str:
    """Writes an image where GLDv2 has it; its path below the root."""
    name = "/".join([part, *one.id[:3], f"{one.id}.jpg"])
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(one.jpeg)
    return name


def _write_csv(path: Path, header: list[str], rows: Iterable) -> None:
    with open(path, "w", newline="", encoding="ascii") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("out", type=file_path, help="folder for the set")
    seed = takes(whole(0, 0, 2**63 - 1))
    parser.add_argument("--seed", type=seed, default=0, help="another one draws other views")
    args = parser.parse_args()
    settings = {"version": VERSION, "seed": args.seed}
    print(make(args.out, "landmark_views.json", settings, partial(draw, seed=args.seed)))


if __name__ == "__main__":
    run_cli(main)
