"""The plane that a face of the demo data set is drawn on (coordinates: tools/demo/faces.py)."""

import math
from types import SimpleNamespace

import numpy as np

DEPTH = 0.95  # of the head's ellipsoid, from its middle to the front
Window = tuple[slice, slice]


class Canvas:
    """A picture in the making.

    Attributes:
        image: float32 (3, H, W), albedo, from 0 to 1.
        u, v: float32 (H, W), every pixel's place in face units with the head's roll taken out.
        outline, skin: float32 (H, W), distance to the head's outline and the mask of its inside.
        nx, ny: float32 (H, W), slope of the relief (nose, cheeks, ...) on top of the ellipsoid.
    """

    def __init__(self, face: SimpleNamespace, picture: SimpleNamespace):
        self.face, self.picture = face, picture
        self.middle = (face.chin + face.crown) / 2
        self.height = (face.chin - face.crown) / 2
        self.edge = 1.3 / picture.scale  # edges are this wide: anti-aliasing
        self.cos, self.sin = math.cos(picture.roll), math.sin(picture.roll)
        pixels = np.arange(picture.side)
        x = ((pixels - picture.x) / picture.scale).astype(np.float32)
        y = ((pixels - picture.y) / picture.scale).astype(np.float32)[:, None]
        self.u, self.v = self.cos * x + self.sin * y, self.cos * y - self.sin * x
        self.outline = self.head(self.u, self.v)
        self.skin = self.soft(self.outline)
        self.image = np.empty((3, picture.side, picture.side), np.float32)
        self.nx, self.ny = np.zeros((2, picture.side, picture.side), np.float32)
        # the head turns about axes behind its middle, so that it stays roughly in place
        self.shift = math.sin(picture.yaw), math.sin(picture.pitch)

    def head(self, u: np.ndarray, v: np.ndarray, grow: float = 0.0) -> np.ndarray:
        """Distance to the head's outline, about in face units, negative inside."""
        t = (v - self.middle) / (self.height + grow)
        chin = np.square(np.maximum(t, 0))  # 0 in the upper half
        wide = (self.face.width + grow) * (1 - self.face.taper * chin)
        down = np.square(t) - self.face.jaw * chin * (1 - chin)
        return (np.sqrt(np.square(u / wide) + down) - 1) * self.face.width

    def project(self, x: float, y: float, lift: float = 0.0) -> tuple[float, float]:
        """Where a point of the head, `lift` above its surface, is seen on the plane (u, v)."""
        z = self.depth(x, y) + lift - 0.25 * DEPTH
        yaw, pitch = self.picture.yaw, self.picture.pitch
        return x * math.cos(yaw) + z * self.shift[0], y * math.cos(pitch) + z * self.shift[1]

    def depth(self, x: float, y: float) -> float:
        rest = 1 - (x / self.face.width) ** 2 - ((y - self.middle) / self.height) ** 2
        return DEPTH * math.sqrt(max(rest, 0.05))

    def foreshortening(self, x: float, y: float) -> tuple[float, float]:
        """How much shorter the surface around (x, y) looks across and down: du/dx and dv/dy."""
        z = self.depth(x, y)
        slope_x = -x / z * (DEPTH / self.face.width) ** 2
        slope_y = -(y - self.middle) / z * (DEPTH / self.height) ** 2
        short_x = math.cos(self.picture.yaw) + slope_x * self.shift[0]
        short_y = math.cos(self.picture.pitch) + slope_y * self.shift[1]
        return min(max(short_x, 0.4), 1.2), min(max(short_y, 0.6), 1.2)

    def decal(
        self, x: float, y: float, radius: float, side: int = 1, tilt: float = 0.0, lift: float = 0.0
    ) -> tuple[Window, np.ndarray, np.ndarray]:
        """Local coordinates of a patch of the face's surface around (x, y).

        Returns:
            where: the part of the picture it can cover.
            a, b: float32, coordinates within it, a outwards on that side of the face, b down.
        """
        u, v = self.project(x, y, lift)
        short_x, short_y = self.foreshortening(x, y)
        where = self.window(u, v, radius)
        a, b = (self.u[where] - u) / (side * short_x), (self.v[where] - v) / short_y
        if tilt:
            cos, sin = math.cos(tilt), math.sin(tilt)
            a, b = cos * a + sin * b, cos * b - sin * a
        return where, a, b

    def pixel(self, u: float, v: float) -> tuple[float, float]:
        """Where a place of the plane lies in the picture (x, y)."""
        x, y, scale = self.picture.x, self.picture.y, self.picture.scale
        return x + scale * (self.cos * u - self.sin * v), y + scale * (self.sin * u + self.cos * v)

    def window(self, u: float, v: float, radius: float) -> Window:
        (x, y), r = self.pixel(u, v), radius * self.picture.scale + 2
        return tuple(slice(max(int(c - r), 0), max(int(c + r) + 1, 0)) for c in (y, x))

    def soft(self, distance: np.ndarray, width: float = 0.0) -> np.ndarray:
        """1 inside (distance < 0), 0 outside, between them a smooth step as wide as `width`."""
        t = distance * (-1 / (width + self.edge))
        t += 0.5
        np.minimum(np.maximum(t, 0, out=t), 1, out=t)  # np.clip takes longer to start
        return t * t * (3 - 2 * t)

    def paint(self, where: Window, mask: np.ndarray, colour: np.ndarray | tuple) -> None:
        """Blends a colour in: (3,), or (3, h, w) for a texture."""
        part = self.image[:, where[0], where[1]]
        part += mask * (planes(colour) - part)

    def shade(self, where: Window, mask: np.ndarray, strength: float) -> None:
        """Darkens what is there; brightens it when strength < 0."""
        self.image[:, where[0], where[1]] *= 1 - strength * mask

    def bump(self, x: float, y: float, width: float, tall: float, height: float) -> None:
        """Adds a hill to the relief."""
        where, a, b = self.decal(x, y, 2.2 * max(width, tall))
        hill = height * spot(a / width, b / tall)
        self.nx[where] += hill * a / width
        self.ny[where] += hill * b / tall


def planes(colour: np.ndarray | tuple) -> np.ndarray:
    """A colour (3,) as float32 (3, 1, 1); a texture (3, h, w) as it is."""
    colour = np.asarray(colour, np.float32)
    return colour[:, None, None] if colour.ndim == 1 else colour


def spot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A soft round spot, 1 in the middle, 1/e at distance 1."""
    return np.exp(-np.square(a) - np.square(b))
