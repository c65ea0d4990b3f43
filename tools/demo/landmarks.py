"""A view of a landmark, warped from a photograph: as if someone else had taken it.

How far a view is from the photograph is one number, its difficulty, from 0 to 1: it scales how far
the viewpoint moves and how little of the scene is left, the people and signs before it, the light
and the camera's faults, all at once. At 0.35 most of the scene is there, at 0.7 half of it, beyond
0.85 less than a fifth.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MARGIN = 0.5  # of the photograph's side, mirrored around it for views that look past its edge


def widened(photo: Image.Image) -> Image.Image:
    """The photograph with its mirror image around it."""
    pixels = np.asarray(photo.convert("RGB"))
    down, across = (int(MARGIN * side) for side in pixels.shape[:2])
    return Image.fromarray(np.pad(pixels, ((down, down), (across, across), (0, 0)), "reflect"))


def view(
    wide: Image.Image, difficulty: float, rng: np.random.Generator, side: int = 112
) -> np.ndarray:
    """uint8 (side, side, 3).

    Args:
        wide: from `widened`.
        difficulty: from 0 to 1.
    """
    corners = viewpoint(wide.size, difficulty, rng)
    image = wide.transform(
        (side, side), Image.Transform.PERSPECTIVE, homography(corners, side), Image.BICUBIC
    )
    passers_by(image, difficulty, rng)
    pixels = np.asarray(image, np.float64) / 255
    pixels = pixels ** np.exp(rng.normal(0, 0.45 * difficulty))  # contrast
    pixels *= 1 + rng.normal(0, 0.22 * difficulty, 3)  # colour of the light
    pixels += rng.normal(0, 0.06 * difficulty)
    if rng.random() < 0.25 * difficulty:
        pixels *= (0.28, 0.32, 0.44)  # night
    if rng.random() < 0.15 * difficulty:
        pixels = pixels.mean(2, keepdims=True).repeat(3, 2)
    image = Image.fromarray(_bytes(pixels))
    if rng.random() < 0.6 * difficulty:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
    noise = rng.normal(0, 0.035 * difficulty, pixels.shape)
    return _bytes(np.asarray(image) / 255 + noise)


def viewpoint(size: tuple[int, int], difficulty: float, rng: np.random.Generator) -> np.ndarray:
    """float64 (4, 2): where the view's corners lie in a widened photograph of this size, clockwise
    from the upper left one."""
    photo = np.array(size) / (1 + 2 * MARGIN)
    if difficulty <= 0.8:
        kept = 1 - 0.15 * difficulty * rng.uniform(0.5, 1.5) - 0.38 * difficulty**2
    else:
        kept = rng.uniform(0.36, 0.48)
    frame = kept * photo
    first = MARGIN * photo + rng.uniform(0, 1, 2) * (photo - frame)
    corners = first + frame * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    angle = np.deg2rad(rng.normal(0, 9 * difficulty))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = corners.mean(0)
    tilt = 0.16 * difficulty * frame * rng.uniform(-1, 1, (4, 2))
    return (corners - middle) @ turn.T + middle + tilt


def homography(corners: np.ndarray, side: int) -> list[float]:
    """a to h of (a x + b y + c, d x + e y + f) / (g x + h y + 1), which takes the corners of a
    square of this side to these points."""
    rows = []
    for (x, y), (u, v) in zip(
        [(0, 0), (side, 0), (side, side), (0, side)], corners.tolist(), strict=True
    ):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    return np.linalg.solve(np.array(rows, float), corners.ravel()).tolist()


def passers_by(image: Image.Image, difficulty: float, rng: np.random.Generator) -> None:
    """Draws people and signs, as ellipses and rectangles, in front of the scene."""
    brush, side = ImageDraw.Draw(image), image.width
    for _ in range(rng.poisson(2.5 * difficulty)):
        width, height = rng.uniform(0.06, 0.22) * side, rng.uniform(0.10, 0.42) * side
        x, foot = rng.uniform(0, side), side - rng.uniform(0, 0.5) * side
        shape = brush.ellipse if rng.random() < 0.5 else brush.rectangle
        shape((x, foot - height, x + width, foot), fill=tuple(rng.integers(0, 256, 3).tolist()))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)
