"""Small pictures of an image set, for pages."""

from collections.abc import Callable

import numpy as np

from bct.data.image_set import ImageSet
from bct.data.views import View, transform


def thumbnails_of(images: ImageSet) -> Callable[[int, np.ndarray], None]:
    """(image, out uint8 (112, 112, 3)) fills in the middle of an image, made small."""
    shrink = transform(View(crop="resized"), train=False)

    def fill(index: int, out: np.ndarray) -> None:
        out[:] = shrink(images.image(index))

    return fill
