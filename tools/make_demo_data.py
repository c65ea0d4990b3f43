"""Makes the demo data set: drawn faces in every format the system reads, no download needed.

    python tools/make_demo_data.py
    python tools/make_demo_data.py --identities 300 --images 32 --out /data/demo

Writes to --out (default work_dirs/demo/data):
    train.rec, train.idx, property   aligned 112x112 training faces, as insightface stores them
    demo.bin                         verification pairs, insightface's pickle
    IJBC/loose_crop, IJBC/meta       templates, galleries and probes in the layout of IJB-C
    contact_sheet.png                some of the training faces
    demo.json                        how all this was made

The same parameters give the same bytes, whatever the number of workers. The people of demo.bin and
IJBC are not among the training identities. The faces: tools/demo/people.py, tools/demo/faces.py.
"""

import inspect
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from bct.command import Parser, file_path, run_cli, takes
from bct.data.images import SIZE, decode
from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header
from bct.errors import BctError
from bct.files import ROOT, read_json, sha256_file, write_json
from bct.folders import atomic_folder
from bct.keys import whole
from bct.log import progress
from tools.demo import people as demo_people
from tools.demo.faces import draw
from tools.ijbc.align import align, similarity_to_template

VERSION = 1  # raise it when the same parameters give other bytes
ALIGNED_QUALITY = 92  # JPEG; the loose crops have a quality of their own
EVAL_FIRST = 1_000_000  # number of the first evaluation identity, above all training identities
PAIRS_PER_PERSON = 5  # genuine pairs of demo.bin, and as many impostors
PAIR_PICTURES = 6  # which a person's pairs are drawn from
PROBES = 6  # probe templates per evaluation identity, besides one in a gallery
MAX_IMAGES, MAX_MEDIA = 4, 3  # per template
IMPOSTORS = 20_000  # in the 1:1 protocol, at most
SHEET_ROWS, SHEET_COLUMNS, SHEET_SIZE = 8, 10, 72  # contact sheet: people, pictures, pixels
FILES = ("train.rec", "train.idx", "property", "demo.bin", "IJBC", "contact_sheet.png")

_FACE, _PICTURE, _FRAME, _PLAN, _PAIRS, _PROTOCOL = range(6)  # what a random stream is for


def stream(seed: int, use: int, person: int = 0, picture: int = 0) -> np.random.Generator:
    """A random stream of its own for every use, person and picture."""
    return np.random.default_rng([use, person, picture, seed])


class Shot(NamedTuple):
    """A loose crop of an evaluation identity. landmarks float64 (5, 2); `medium` counts from 0."""

    medium: int
    jpeg: bytes
    landmarks: np.ndarray
    score: float


class Row(NamedTuple):
    """A shot in the protocol: its file's number, its template, medium and person."""

    image: int
    template: int
    medium: int
    subject: int
    landmarks: np.ndarray
    score: float


def make(
    out: Path,
    identities: int = 120,
    images: int = 16,
    eval_identities: int = 60,
    seed: int = 0,
    workers: int = 2,
    force: bool = False,
) -> bool:
    """Makes the data set at `out`, unless it is there already.

    Args:
        out: folder; it appears when everything in it is written.
        images: per training identity.
        workers: processes that draw.
        force: draw again, replacing the folder if it holds a demo data set.

    Returns:
        False if it was there already.

    Raises:
        BctError: a parameter out of range, a folder that holds something else.
    """
    parameters = {
        "identities": identities,
        "images": images,
        "eval_identities": eval_identities,
        "seed": seed,
    }
    least = {"identities": 2, "images": 2, "eval_identities": 2, "seed": 0, "workers": 1}
    for name, value in {**parameters, "workers": workers}.items():
        if value < least[name]:
            option = name.replace("_", "-")
            raise BctError(f"--{option} {value} is too small", f"give at least {least[name]}")
    if identities * (images + 1) + 1 >= 2**24 or max(identities, eval_identities) > EVAL_FIRST:
        raise BctError(  # labels of records are float32, and header and identity records hold keys
            f"{identities} identities x {images} images are too many for one record file",
            "lower --identities or --images",
        )
    parameters |= _difficulty()
    out = Path(os.path.realpath(out))  # which takes a link to itself, too
    if _is_there(out, parameters, force):
        return False
    with atomic_folder(out, "demo.json") as folder, _mapping(workers) as each:
        counts = _write_training(folder, seed, identities, images, each)
        counts |= _write_evaluation(folder, seed, eval_identities, each)
        digest = sha256_file(folder / "train.rec")
        manifest = {"version": VERSION, "parameters": parameters, "counts": counts}
        write_json(folder / "demo.json", manifest | {"sha256": {"train.rec": digest}})
    return True


def _difficulty() -> dict[str, Any]:
    """The constants of demo_people, as JSON keeps them."""
    constants = {k: v for k, v in vars(demo_people).items() if k.isupper() and k[0] != "_"}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in constants.items()}


def _is_there(out: Path, parameters: dict[str, Any], force: bool) -> bool:
    """Whether `out` holds exactly this data set. BctError when it must not be touched."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "demo.json").is_file():
        raise BctError(
            f"{out} exists and is not a demo data set (it has no demo.json)",
            "give another --out; this one is left as it is",
        )
    if force:
        return False
    manifest = read_json(out / "demo.json")
    entries = ("parameters", "counts", "sha256")
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), dict) for name in entries
    ):
        raise BctError(f"{out}/demo.json is damaged", "give --force to draw the data set again")
    wanted = {"version": VERSION, **parameters}
    found = {"version": manifest.get("version"), **manifest["parameters"]}
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise BctError(
                f"{out} holds another demo data set: {name} is {found.get(name)}, "
                f"asked for is {wanted.get(name)}",
                "give another --out, or --force to replace it",
            )
    bad = [name for name in FILES if not (out / name).exists()]
    if not bad and manifest["sha256"].get("train.rec") != sha256_file(out / "train.rec"):
        bad = ["train.rec"]
    if bad:
        raise BctError(
            f"{out} is damaged: {bad[0]} is missing or changed", "give --force to draw it again"
        )
    return True


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[[Callable, Iterable[int]], Iterator]]:
    """Yields an ordered map, over processes if there is more than one worker."""
    if workers == 1:
        yield map
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield pool.imap


def person(seed: int, number: int) -> SimpleNamespace:
    """Parameters of an identity: 0, 1, ... are for training, from EVAL_FIRST on for evaluation."""
    return demo_people.identity(stream(seed, _FACE, number))


def _aligned_pictures(number: int, seed: int, pictures: int) -> list[bytes]:
    """JPEGs of one person, aligned."""
    face, encoded = person(seed, number), []
    for i in range(pictures):
        image, landmarks = draw(face, demo_people.nuisance(stream(seed, _PICTURE, number, i)))
        image = align(image, similarity_to_template(landmarks[None])[0])
        encoded.append(simplejpeg.encode_jpeg(image, quality=ALIGNED_QUALITY))
    return encoded


def _write_training(
    folder: Path, seed: int, identities: int, images: int, each: Callable
) -> dict[str, int]:
    """train.rec, train.idx, property and the contact sheet. Returns counts."""
    people = each(partial(_aligned_pictures, seed=seed, pictures=images), range(identities))
    first_identity, sheet = identities * images + 1, []
    with RecordWriter(folder / "train.rec") as records:
        key = 1
        for label, pictures in enumerate(progress(people, "training", identities, "person")):
            for jpeg in pictures:
                records.write(key, Header([label, 0], key), jpeg)
                key += 1
            if label < SHEET_ROWS:
                sheet.append(pictures[:SHEET_COLUMNS])
        for first in range(1, first_identity, images):  # a record for each identity: where it is
            records.write(key, Header([first, first + images], key), b"")
            key += 1
        records.write(0, Header([first_identity, key], 0), b"")  # the header: where those are
    (folder / "property").write_text(f"{identities},{SIZE},{SIZE}\n")
    _write_sheet(folder / "contact_sheet.png", sheet)
    return {"training images": first_identity - 1}


def _write_sheet(path: Path, rows: list[list[bytes]]) -> None:
    """A grid of faces, one person per row, in few colours to keep the file small."""
    sheet = Image.new("RGB", (SHEET_SIZE * len(rows[0]), SHEET_SIZE * len(rows)))
    for y, row in enumerate(rows):
        for x, jpeg in enumerate(row):
            face = Image.fromarray(decode(jpeg)).resize((SHEET_SIZE, SHEET_SIZE), Image.LANCZOS)
            sheet.paste(face, (x * SHEET_SIZE, y * SHEET_SIZE))
    colours = sheet.reduce(4).quantize(256, kmeans=2)  # chosen on a small copy: it takes its time
    sheet.quantize(palette=colours, dither=Image.Dither.NONE).save(path, optimize=True)


def _evaluation_person(number: int, seed: int) -> tuple[list[bytes], list[list[Shot]]]:
    """A person's aligned pictures for demo.bin, and the shots of every template, gallery first."""
    face, plan = person(seed, number), stream(seed, _PLAN, number)
    templates, media, shots = [], 0, 0
    for _ in range(1 + PROBES):
        size = int(plan.integers(1, MAX_IMAGES + 1))
        own = int(plan.integers(1, min(size, MAX_MEDIA) + 1))  # each medium has an image at least
        of_shots = sorted([*range(own), *plan.integers(own, size=size - own).tolist()])
        shot = partial(_shot, face, seed, number)
        templates.append([shot(media + m, shots + i) for i, m in enumerate(of_shots)])
        media, shots = media + own, shots + size
    return _aligned_pictures(number, seed, PAIR_PICTURES), templates


def _shot(face: SimpleNamespace, seed: int, number: int, medium: int, shot: int) -> Shot:
    """A loose crop. All shots of a medium show one moment, as the frames of a video do."""
    rng = stream(seed, _FRAME, number, shot)
    moment = demo_people.nuisance(stream(seed, _PICTURE, number, PAIR_PICTURES + medium))
    picture = demo_people.next_frame(moment, rng)
    image, landmarks = draw(face, picture)
    jpeg = simplejpeg.encode_jpeg(image, quality=picture.quality)
    return Shot(medium, jpeg, landmarks, demo_people.detector_score(picture, rng))


def _write_evaluation(folder: Path, seed: int, identities: int, each: Callable) -> dict[str, int]:
    """demo.bin and IJBC. Returns counts."""
    crops = folder / "IJBC" / "loose_crop"
    crops.mkdir(parents=True)
    rng = stream(seed, _PROTOCOL)
    numbers = range(EVAL_FIRST, EVAL_FIRST + identities)
    people = each(partial(_evaluation_person, seed=seed), numbers)
    pictures, rows, template, first_medium = [], [], 0, 1
    for i, (aligned, templates) in enumerate(progress(people, "evaluation", identities, "person")):
        pictures.append(aligned)
        for shots in templates:
            template += int(rng.integers(1, 5))  # ids with gaps, as in IJB-C
            for shot in shots:
                row = Row(len(rows) + 1, template, first_medium + shot.medium, 1001 + i, *shot[2:])
                (crops / f"{row.image}.jpg").write_bytes(shot.jpeg)
                rows.append(row)
        first_medium = rows[-1].medium + 1
    pairs = _write_pairs(folder / "demo.bin", seed, pictures)
    return pairs | _write_protocol(folder / "IJBC" / "meta", rows, rng)


def _write_pairs(path: Path, seed: int, pictures: list[list[bytes]]) -> dict[str, int]:
    """Pairs in turn genuine and impostor, so that all folds of an evaluation are balanced."""
    rng = stream(seed, _PAIRS)
    encoded = []
    both = list(combinations(range(PAIR_PICTURES), 2))
    for i, own in enumerate(pictures):
        for k in rng.choice(len(both), PAIRS_PER_PERSON, replace=False):
            a, b = both[k]
            other = pictures[(i + rng.integers(1, len(pictures))) % len(pictures)]
            c, d = rng.integers(PAIR_PICTURES, size=2)
            encoded += [own[a], own[b], own[c], other[d]]
    issame = [True, False] * (len(encoded) // 4)
    path.write_bytes(pickle.dumps((encoded, issame), protocol=4))
    return {"verification pairs": len(issame)}


def _write_protocol(meta: Path, rows: list[Row], rng: np.random.Generator) -> dict[str, int]:
    """The files of IJBC/meta. Rows of one person follow each other, the gallery template first."""
    meta.mkdir()
    subject = {row.template: row.subject for row in rows}
    enrolled = {person: template for template, person in reversed(subject.items())}  # its first
    probes = [template for template, person in subject.items() if template != enrolled[person]]
    files = {"gallery_G1": [], "gallery_G2": [], "probe_mixed": []}
    for row in rows:
        gallery = f"gallery_G{1 + row.subject % 2}"  # the people take turns
        name = gallery if row.template == enrolled[row.subject] else "probe_mixed"
        files[name].append(f"{row.template},{row.subject},img/{row.image}.jpg,{row.medium}")
    for name, lines in files.items():
        header = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID"
        _write_lines(meta / f"ijbc_1N_{name}.csv", [header, *lines])

    points, media = [], []
    for i in rng.permutation(len(rows)):  # both files in the same order, and not the images'
        row = rows[i]
        numbers = " ".join(f"{value:.3f}" for value in row.landmarks.ravel())
        points.append(f"{row.image}.jpg {numbers} {row.score:.6f}")
        media.append(f"{row.image}.jpg {row.template} {row.medium}")
    _write_lines(meta / "ijbc_name_5pts_score.txt", points)
    _write_lines(meta / "ijbc_face_tid_mid.txt", media)

    genuine = [f"{enrolled[subject[probe]]} {probe} 1" for probe in probes]
    impostors = [
        f"{template} {probe} 0"
        for person, template in enrolled.items()
        for probe in probes
        if person != subject[probe]
    ]
    impostors = [impostors[i] for i in rng.permutation(len(impostors))[:IMPOSTORS]]
    pairs = genuine + impostors
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    _write_lines(meta / "ijbc_template_pair_label.txt", pairs)
    return {
        "evaluation images": len(rows),
        "templates": len(subject),
        "genuine template pairs": len(genuine),
        "impostor template pairs": len(impostors),
    }


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def main() -> None:
    default = inspect.signature(make).parameters
    parser = Parser(__doc__)
    parser.add_argument("--out", type=file_path, help="folder (default: work_dirs/demo/data)")
    for name, text, least, most in (
        ("identities", "people to train on", 1, 10**6),
        ("images", "pictures of each of them", 1, 10**6),
        ("eval_identities", "other people, to test on", 1, 10**6),
        ("seed", "another seed draws other people", 0, 2**63 - 1),
        ("workers", "processes that draw", 1, 1024),
    ):
        value = default[name].default
        option, kind = "--" + name.replace("_", "-"), takes(whole(value, least, most))
        parser.add_argument(option, type=kind, default=value, help=f"{text} (default: {value})")
    parser.add_argument("--force", action="store_true", help="replace an earlier demo data set")
    args = parser.parse_args()
    args.out = args.out.expanduser() if args.out else ROOT / "work_dirs" / "demo" / "data"
    made = make(**vars(args))
    counts = read_json(args.out / "demo.json")["counts"]
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{'wrote' if made else 'reusing'} {args.out}: {listed}")


if __name__ == "__main__":
    run_cli(main)
