"""5-point face alignment to the 112x112 template that ArcFace models are trained on."""

import numpy as np
from skimage.transform import warp

from bct.data.images import SIZE

# left eye, right eye, nose, left and right mouth corner (x, y) in the aligned image; insightface
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.729904, 92.2041],
    ]
)


def similarity_to_template(landmarks: np.ndarray) -> np.ndarray:
    """Least-squares similarity transforms that bring landmarks onto TEMPLATE.

    A similarity of the plane is w = a z + b in complex numbers; least squares gives
    a = sum conj(z - z_mean) (w - w_mean) / sum |z - z_mean|^2: Umeyama's (1991) solution.

    Args:
        landmarks: float (N, 5, 2), pixel coordinates.

    Returns:
        float64 (N, 3, 3), maps homogeneous (x, y, 1) of the source to the aligned image.
    """
    z = landmarks[..., 0] + 1j * landmarks[..., 1]
    w = TEMPLATE[:, 0] + 1j * TEMPLATE[:, 1]
    z_mean, w_mean = z.mean(1), w.mean()
    centred = z - z_mean[:, None]
    a = (centred.conj() * (w - w_mean)).sum(1) / np.square(np.abs(centred)).sum(1)
    b = w_mean - a * z_mean
    matrix = np.zeros((len(z), 3, 3))
    matrix[:, 0] = np.stack((a.real, -a.imag, b.real), 1)
    matrix[:, 1] = np.stack((a.imag, a.real, b.imag), 1)
    matrix[:, 2, 2] = 1
    return matrix


def align(image: np.ndarray, matrix: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Warps a picture to the template, bilinear, black outside.

    Args:
        image: uint8 (H, W, 3).
        matrix: (3, 3) from similarity_to_template.

    Returns:
        uint8 (size, size, 3).
    """
    aligned = warp(image, np.linalg.inv(matrix), output_shape=(size, size), preserve_range=True)
    return np.rint(aligned).astype(np.uint8)
