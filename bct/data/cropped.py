"""Images of which only a box is looked at: the queries of Revisited Oxford and Paris."""

import numpy as np

from bct.data.image_set import ImageSet
from bct.data.images import ALIGN
from bct.errors import BctError
from bct.files import sha256


class Cropped(ImageSet):
    """The part of each image that lies in its box, see crop_box.

    Its fingerprint changes with the images and with the boxes.

    Args:
        images: with images of their own sizes.
        boxes: float (N, 4), left, top, right and bottom in pixels of the image.

    Raises BctError for other boxes.
    """

    def __init__(self, images: ImageSet, boxes: np.ndarray):
        boxes = np.array(boxes, np.float64)
        fits = boxes.shape == (len(images), 4) and np.isfinite(boxes).all()
        if not fits or not (boxes[:, :2] < boxes[:, 2:]).all():
            raise BctError(
                f"the boxes of {images.path} are no boxes of {len(images)} images",
                "give left, top, right and bottom of each, in pixels",
            )
        self.images, self.boxes = images, boxes
        self.path, self.labels, self.class_names = images.path, images.labels, images.class_names
        self.mirror, self.recipe, self.listed = images.mirror, images.recipe, images.listed
        self.fingerprint = sha256(images.fingerprint, "cropped", boxes.tobytes())

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        """uint8 (h, w, 3), what lies in the box. BctError for a box outside of the image."""
        image = self.images.image(index)
        rows, columns = crop_box(self.boxes[index], *image.shape[:2])
        if not (rows.start < rows.stop and columns.start < columns.stop):
            height, width = image.shape[:2]
            raise BctError(
                f"the box {self.boxes[index].tolist()} lies outside of {self.describe(index)}, "
                f"which is {width}x{height}",
                "give the images of the size that the boxes were drawn in",
            )
        return image[rows, columns]

    def load(self, index: int, out: np.ndarray) -> int:
        """Copies what lies in the box, if it has exactly out's size; the image's label."""
        image = self.image(index)
        if image.shape != out.shape:
            height, width = image.shape[:2]
            raise BctError(f"{self.describe(index)}: its box is {width}x{height}", ALIGN)
        out[:] = image
        return int(self.labels[index])

    def describe(self, index: int) -> str:
        return self.images.describe(index)


def crop_box(box: np.ndarray, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a box: its sides rounded to whole pixels (half to even), as Pillow crops,
    and cut off at the image's edge. Empty for a box that is not in the image."""
    left, top, right, bottom = (int(side) for side in np.rint(box))
    return slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
