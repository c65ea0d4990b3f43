"""Tiny data sets of drawn pictures, in the forms that the scripts of runs/ take."""

import pickle
import zipfile
from pathlib import Path

from PIL import Image

from support.cifar import write_cifar
from support.old_models import tool
from support.pictures import jpeg, picture, write_faces


def image_folders(root: Path, classes: int = 6, train: int = 4, val: int = 3) -> Path:
    """ImageNet's form: train/<class>/ and val/<class>/; its folder."""
    for part, first, count in (("train", 0, train), ("val", train, val)):
        for c in range(classes):
            folder = root / part / f"n{c:02}"
            folder.mkdir(parents=True)
            for k in range(first, first + count):
                (folder / f"{k}.JPEG").write_bytes(jpeg(c, k, 48))
    return root


def tiny_imagenet_zip(root: Path) -> Path:
    """The folder of a zip of such folders."""
    images = image_folders(root / "images")
    root.joinpath("zips").mkdir()
    with zipfile.ZipFile(root / "zips/tiny.zip", "w") as file:
        for path in sorted(images.rglob("*.JPEG")):
            file.write(path, Path("tiny-imagenet-200") / path.relative_to(images))
    return root / "zips"


def omniglot_zip(root: Path, characters: int = 8) -> Path:
    """The folder of a zip with characters of 2 alphabets, drawn 20 times, as Omniglot's have
    them."""
    drawn = root / "drawn.png"
    (root / "zips").mkdir(parents=True)
    with zipfile.ZipFile(root / "zips/small.zip", "w") as file:
        for character in range(characters):
            alphabet = ("Greek", "Latin")[2 * character // characters]
            for drawer in range(20):
                name = f"character{character + 1:02}/{character:04}_{drawer + 1:02}.png"
                Image.fromarray(picture(character, drawer, 30)).convert("L").save(drawn)
                file.write(drawn, f"images/{alphabet}/{name}")
    return root / "zips"


def cifar(root: Path) -> Path:
    """CIFAR-100 with two images of each class and more, in training and in test."""
    return write_cifar(root, per_file=300)


def faces(root: Path, people: int = 10, images: int = 6) -> Path:
    """A folder with train.rec."""
    root.mkdir(parents=True)
    write_faces(root / "train.rec", [images] * people)
    return root


def bin_set(root: Path) -> Path:
    """A verification set of 10 pairs of each kind."""
    same = [True, False] * 10
    images = [jpeg(i if s else i + 100 * k, k) for i, s in enumerate(same) for k in (0, 1)]
    root.with_suffix(".bin").write_bytes(pickle.dumps((images, same)))
    return root.with_suffix(".bin")


def gldv2(root: Path) -> Path:
    """Views of landmarks as GLDv2 lies on a disk."""
    tool("make_landmark_views", root)
    (root / "gldv2/label_20.txt").rename(root / "gldv2/label_81313.txt")
    return root / "gldv2"


def retrieval(root: Path) -> Path:
    """The folder of Revisited Oxford, whose images are views of landmarks."""
    tool("make_landmark_views", root)
    (root / "revisited/jpg").rename(root / "revisited/roxford5k_jpg")
    (root / "revisited/roxford5k").mkdir()
    (root / "revisited/roxford5k_jpg").rename(root / "revisited/roxford5k/jpg")
    (root / "revisited/gnd_landmarkviews.pkl").rename(root / "revisited/gnd_roxford5k.pkl")
    return root / "revisited"


def market1501(root: Path) -> Path:
    """Drawn people as Market-1501 lies on a disk."""
    tool("make_people", root)
    return root
