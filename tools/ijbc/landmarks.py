"""Pictures of faces with five landmarks each, aligned to 112 x 112 as IJB's are.

A file of landmarks has a line for each image, in any order, fields separated by spaces:

    <name> <x1> <y1> ... <x5> <y5> [<score>]

left eye, right eye, nose, left and right mouth corner, in pixels of the very file; lines of other
images are passed over. A face that was not found has one point five times, or NaN.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bct.data.image_set import ImageSet
from bct.data.images import SIZE
from bct.distributed import say
from bct.errors import BctError, printable
from bct.files import sha256, without_mark
from tools.ijbc.align import align, similarity_to_template
from tools.ijbc.crops import has_face

_POINTS = 10
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_LARGEST = 1e6  # pixels


def read_landmarks(file: Path, names: dict[bytes, int]) -> np.ndarray:
    """float64 (N, 5, 2) for N images, rows of inf where the file has no line for an image.

    Args:
        names: the images' names and their rows.

    Raises BctError: a missing file, a line that does not parse, two lines of one image, or a file
    with no line for any of the images.
    """
    if not file.is_file():
        raise BctError(f"landmarks {file} do not exist", "check the path")
    found, lines, others = np.full((len(names), 5, 2), np.inf), {}, 0
    with open(file, "rb") as text:
        for number, line in enumerate(text, 1):
            line = without_mark(file, line) if number == 1 else line
            if not line.strip():
                continue
            name, points = _parsed(file, number, line.strip(), names)
            if name not in names:
                others += 1
            elif name in lines:
                raise _bad_line(file, number, f"{_shown(name)} is in line {lines[name]}, too")
            else:
                lines[name], found[names[name]] = number, points
    if not lines:
        first = _shown(next(iter(names)))
        raise BctError(
            f"{file} has no line for any of the images, the first of which is {first}",
            "name the images as out_names.txt does: relative to the folder that is given",
        )
    if others:
        say(f"{file}: {others} lines are of other images and are passed over")
    return found


def _parsed(
    file: Path, number: int, line: bytes, names: dict[bytes, int]
) -> tuple[bytes, np.ndarray]:
    """A line's name and points, (5, 2). Names may hold spaces, and the score may be left out: the
    name that an image has is taken."""
    known = []
    for count in (_POINTS + 1, _POINTS):
        fields = line.rsplit(None, count)
        if len(fields) == count + 1 and all(map(_NUMBER.fullmatch, fields[1:])):
            known.append((fields[0], fields[1 : _POINTS + 1]))
    if not known:
        raise _bad_line(file, number, "no name with 10 coordinates and, perhaps, a score")
    of_images = [entry for entry in known if entry[0] in names]
    if len(of_images) > 1:
        raise _bad_line(file, number, f"{_shown(of_images[0][0])} or another image: write a score")
    name, fields = (of_images or known)[0]
    points = np.array([float(field) for field in fields]).reshape(5, 2)
    points[~np.isfinite(points)] = np.nan
    if (np.abs(points) > _LARGEST).any():
        raise _bad_line(file, number, "a coordinate is none of a picture")
    return name, points


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace"))


def _bad_line(file: Path, number: int, why: str) -> BctError:
    form = "write <name> x1 y1 ... x5 y5 [score]"
    return BctError(f"{file}, line {number}: {printable(why)}", form)


class AlignedFaces(ImageSet):
    """The images of a set, each warped to 112 x 112 by its five landmarks.

    Args:
        images: N images of any size. file: of the landmarks, for messages.
        landmarks: float64 (N, 5, 2), as read_landmarks returns them.
        digest: of the file.
    """

    native = SIZE
    recipe = "align5-112-v1"

    def __init__(self, images: ImageSet, file: Path, landmarks: np.ndarray, digest: str):
        self.images, self.file, self.path = images, file, images.path
        self.labels, self.class_names = images.labels, images.class_names
        self.missing = np.isinf(landmarks).any((1, 2))
        self.found = has_face(landmarks)
        self.matrices = np.zeros((len(landmarks), 3, 3))
        self.matrices[self.found] = similarity_to_template(landmarks[self.found])
        self.fingerprint = sha256(images.fingerprint, digest)

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, index: int) -> str:
        return self.images.describe(index)

    def load(self, index: int, out: np.ndarray) -> int:
        """Warps a picture into out, uint8 (112, 112, 3); its label. BctError for an image without
        a line or a face, that is broken, or that its landmarks lie outside of."""
        if self.missing[index]:
            raise BctError(
                f"{self.describe(index)} has no line in {self.file}",
                "add its landmarks, or leave such images out: --on-bad-image skip",
            )
        if not self.found[index]:
            raise BctError(
                f"{self.describe(index)} has no face: its landmarks in {self.file} are one point",
                "detect its face again, or leave such images out: --on-bad-image skip",
            )
        picture = self.images.image(index)
        out[:] = align(picture, self.matrices[index])
        if picture.any() and not out.any():
            raise BctError(
                f"{self.describe(index)}: its landmarks in {self.file} lie outside of it: it has "
                f"{picture.shape[1]}x{picture.shape[0]} pixels",
                "give landmarks in pixels of the very files",
            )
        return int(self.labels[index])

    def image(self, index: int) -> np.ndarray:
        """uint8 (112, 112, 3). BctError like load."""
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        self.load(index, out)
        return out


def aligned(images: ImageSet, name: Callable[[int], bytes], file: Path) -> AlignedFaces:
    """The images, aligned by the landmarks in a file. BctError like read_landmarks, for two images
    of one name, and for a set whose images are all of one size."""
    if images.native or not images.resizable:
        raise BctError(f"the images of {images.path} need no landmarks", "leave --landmarks out")
    names = {name(index): index for index in range(len(images))}
    if len(names) < len(images):
        raise BctError(
            f"two images of {images.path} have one name, which landmarks can't tell apart",
            "name each image once",
        )
    landmarks = read_landmarks(file, names)
    return AlignedFaces(images, file, landmarks, sha256(file.read_bytes()))
