"""Makes a set of drawn people for re-identification, in minutes' size; nobody's pictures.

    python tools/make_people.py work_dirs/people_views/data
    python tools/make_people.py /data/people --seed 1

OUT gets Market-1501's layout and names, <person>_c<camera>s<sequence>_<frame>_<box>.jpg, 64 x 128
pixels each. A person is seen by 2 to 5 of 6 cameras:

    bounding_box_train/    30 people, 1 to 3 pictures by each camera
    bounding_box_test/     the gallery: 30 others, the same; 40 distractors, named 0000, each a
                           person of its own; 20 pieces of junk, named -1
    query/                 of these 30 others one more picture by each camera
    people.json            how all this was made

Everybody is told from others by build, hair and clothes, which cameras show in lights of their own
and from sides of their own: tools/demo/pedestrians.py. Equal seeds give equal bytes.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import simplejpeg

from bct.command import Parser, file_path, run_cli, takes
from bct.keys import whole
from tools.demo import pedestrians
from tools.demo.drawn_set import make, stream

VERSION = 1  # raise it when the same seed gives other bytes
TRAINED, ASKED = 30, 30  # people
NUMBERS = 1501  # the highest one that a person may have, as in Market-1501
CAMERAS, DISTRACTORS, JUNK = 6, 40, 20
QUALITY = 88

_PLAN, _CAMERA, _PERSON, _PICTURE = range(4)  # what a random stream is for


class Picture(NamedTuple):
    """A picture to be drawn: its folder, the number in its name, whom it shows, the camera."""

    folder: str
    number: int
    person: int
    camera: int


def plan(rng: np.random.Generator) -> Iterator[Picture]:
    """All pictures. Persons are counted through; distractors and junk have one picture each."""
    numbers = np.sort(rng.choice(NUMBERS, TRAINED + ASKED, replace=False) + 1).tolist()
    trained = set(rng.choice(numbers, TRAINED, replace=False).tolist())
    for person, number in enumerate(numbers):
        for camera in np.sort(rng.choice(CAMERAS, rng.integers(2, 6), replace=False)).tolist():
            folder = "bounding_box_train" if number in trained else "bounding_box_test"
            for _ in range(rng.integers(1, 4)):
                yield Picture(folder, number, person, camera)
            if number not in trained:
                yield Picture("query", number, person, camera)
    for k in range(DISTRACTORS + JUNK):
        number = 0 if k < DISTRACTORS else -1
        camera = int(rng.integers(CAMERAS))
        yield Picture("bounding_box_test", number, len(numbers) + k, camera)


def draw(folder: Path, seed: int) -> dict[str, int]:
    """Writes the set, returns counts."""
    rng, frame = stream(seed, _PLAN), 0
    cameras = [pedestrians.camera(stream(seed, _CAMERA, k)) for k in range(CAMERAS)]
    counts = dict.fromkeys(("bounding_box_train", "bounding_box_test", "query"), 0)
    for name in counts:
        (folder / name).mkdir()
    for k, picture in enumerate(plan(rng)):
        frame += int(rng.integers(5, 400))
        who = f"{picture.number:04d}" if picture.number >= 0 else "-1"
        where = f"c{picture.camera + 1}s{1 + frame // 40000}_{frame:06d}_{rng.integers(1, 9):02d}"
        pixels = pedestrians.draw(
            person(seed, picture.person), cameras[picture.camera], stream(seed, _PICTURE, k)
        )
        jpeg = simplejpeg.encode_jpeg(pixels, quality=QUALITY)
        (folder / picture.folder / f"{who}_{where}.jpg").write_bytes(jpeg)
        counts[picture.folder] += 1
    return {f"images in {name}": count for name, count in counts.items()}


def person(seed: int, number: int) -> SimpleNamespace:
    return pedestrians.person(stream(seed, _PERSON, number))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("out", type=file_path, help="folder for the set")
    seed = takes(whole(0, 0, 2**63 - 1))
    parser.add_argument("--seed", type=seed, default=0, help="another one draws other people")
    args = parser.parse_args()
    settings = {"version": VERSION, "seed": args.seed}
    print(make(args.out, "people.json", settings, partial(draw, seed=args.seed)))


if __name__ == "__main__":
    run_cli(main)
