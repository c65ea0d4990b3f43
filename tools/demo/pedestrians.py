"""Draws people on a street as a detector cuts them out of a camera's picture; nobody's likeness.

What says who it is never changes: build, skin, hair, clothes, bag (`person`). A camera has a place,
a light and colours of its own (`camera`), and shows most people from one side, which hides a face,
a bag or a print. A picture adds a step, the detector's error, things in the way and noise (`draw`).

Coordinates are shares of an average person's height, x to the right of the body's middle, y down
from the top of the head.
"""

from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 64, 128  # pixels, as Market-1501's
FINER = 3  # pictures are drawn so many times as large, then reduced: smooth edges
FRONT, BACK, LEFT, RIGHT = range(4)  # what is seen of a person
PATTERNS = ("plain", "hoops", "stripes", "print")
TROUSERS, SHORTS, SKIRT = 0.93, 0.70, 0.74  # where they end
Colour = tuple[int, int, int]


def colour(rng: np.random.Generator) -> Colour:
    """Of clothes: any, or a grey one, or a dark one."""
    kind, values = rng.integers(3), rng.uniform(0, 1, 3)
    if kind == 1:
        values = np.full(3, 0.05 + 0.85 * values[0])
    elif kind == 2:
        values = values**2
    return _rgb(10 + 235 * values)


def person(rng: np.random.Generator) -> SimpleNamespace:
    """What is seen of somebody in every picture."""
    return SimpleNamespace(
        stout=rng.uniform(0.8, 1.25),
        tall=rng.uniform(0.9, 1.05),
        skin=_rgb(np.array([235, 195, 165]) * rng.uniform(0.4, 1)),
        hair=_rgb(np.array([70, 50, 35]) * rng.uniform(0.2, 2.2)),
        long_hair=rng.random() < 0.4,
        top=colour(rng),
        second=colour(rng),
        pattern=PATTERNS[rng.integers(len(PATTERNS))],
        long_sleeves=rng.random() < 0.5,
        legs=colour(rng),
        end=(TROUSERS, SHORTS, SKIRT)[rng.integers(3)],
        shoes=colour(rng),
        bag=colour(rng) if rng.random() < 0.5 else None,
        bag_on_back=rng.random() < 0.5,
    )


def camera(rng: np.random.Generator) -> SimpleNamespace:
    """What all pictures of one camera have in common."""
    return SimpleNamespace(
        tint=1 + rng.normal(0, 0.13, 3),
        gain=rng.uniform(0.7, 1.2),
        wall=rng.uniform(70, 180) + rng.normal(0, 18, 3),
        ground=rng.uniform(0.3, 0.7),  # where it begins, of the picture's height
        side=int(rng.integers(4)),
        blur=rng.uniform(0.3, 1.1),
    )


def draw(who: SimpleNamespace, seen_by: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """A picture, uint8 (HEIGHT, WIDTH, 3)."""
    image = _street(seen_by, rng)
    side = seen_by.side if rng.random() < 0.7 else int(rng.integers(4))
    _body(_Figure(image, who, side, rng), who, side, step=rng.uniform(-0.045, 0.045))
    if rng.random() < 0.15:
        _in_the_way(image, seen_by, rng)
    image = image.filter(ImageFilter.GaussianBlur(FINER * seen_by.blur)).reduce(FINER)
    pixels = np.asarray(image) * seen_by.tint * seen_by.gain * rng.uniform(0.85, 1.15)
    pixels += rng.normal(0, 6, pixels.shape)
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


class _Figure:
    """A brush in a person's coordinates; where the detector's box is shifted, so are these."""

    def __init__(self, image: Image.Image, who: SimpleNamespace, side: int, rng):
        self.brush = ImageDraw.Draw(image)
        self.scale = 0.95 * image.height * who.tall * rng.uniform(0.86, 1.08)
        self.wide = 1.15 * who.stout * (0.72 if side in (LEFT, RIGHT) else 1)
        self.middle = image.width / 2 + 0.027 * image.height * rng.normal()
        self.top = (image.height - self.scale) / 2 + 0.023 * image.height * rng.normal()

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.middle + self.scale * self.wide * x, self.top + self.scale * y

    def shape(self, fill: Colour, *points: tuple[float, float]) -> None:
        self.brush.polygon([self.at(x, y) for x, y in points], fill)

    def both(self, fill: Colour, *points: tuple[float, float]) -> None:
        """A shape given by its right half, from the top down."""
        self.shape(fill, *points, *[(-x, y) for x, y in reversed(points)])

    def oval(self, fill: Colour, x: float, y: float, across: float, down: float) -> None:
        self.brush.ellipse([*self.at(x - across, y - down), *self.at(x + across, y + down)], fill)

    def limb(self, fill: Colour, start: tuple, end: tuple, thick: float) -> None:
        ends, radius = [self.at(*start), self.at(*end)], self.scale * self.wide * thick / 2
        self.brush.line(ends, fill, round(2 * radius))
        for x, y in ends:
            self.brush.ellipse([x - radius, y - radius, x + radius, y + radius], fill)


def _street(seen_by: SimpleNamespace, rng: np.random.Generator) -> Image.Image:
    """A wall above, the ground below, both blotched."""
    height, width = FINER * HEIGHT, FINER * WIDTH
    below = np.arange(height)[:, None, None] >= seen_by.ground * height
    pixels = np.where(below, 0.75 * seen_by.wall + 25, seen_by.wall)
    blotches = rng.normal(0, 12, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    return Image.fromarray((pixels + blotches).clip(0, 255).astype(np.uint8))


def _body(figure: _Figure, who: SimpleNamespace, side: int, step: float) -> None:
    """Step: how far apart the feet are, and against them the hands."""
    for leg in (-1, 1):
        hip, foot = (0.048 * leg, 0.52), (0.052 * leg - step * leg, 0.94)
        figure.limb(who.skin, hip, foot, 0.052)
        figure.limb(who.shoes, (foot[0] - 0.01, 0.965), (foot[0] + 0.02 * leg, 0.965), 0.045)
        if who.end != SKIRT:
            share = (who.end - hip[1]) / (foot[1] - hip[1])
            end = hip[0] + share * (foot[0] - hip[0]), who.end
            figure.limb(who.legs, hip, end, 0.075)
    if who.end == SKIRT:
        figure.both(who.legs, (0.08, 0.48), (0.12, SKIRT))
    for arm in (-1, 1):
        shoulder, hand = (0.105 * arm, 0.225), (0.14 * arm + 0.8 * step * arm, 0.50)
        elbow = tuple(np.mean([shoulder, hand], 0).tolist())
        figure.limb(who.skin, shoulder, hand, 0.04)
        figure.limb(who.top, shoulder, hand if who.long_sleeves else elbow, 0.055)
    figure.both(who.top, (0.04, 0.185), (0.115, 0.21), (0.09, 0.40), (0.10, 0.53))
    _pattern(figure, who, side)
    _head(figure, who, side)
    if who.bag:
        _bag(figure, who, side)


def _pattern(figure: _Figure, who: SimpleNamespace, side: int) -> None:
    if who.pattern == "hoops":
        for y in (0.24, 0.31, 0.38, 0.45):
            figure.both(who.second, (0.09, y), (0.09, y + 0.03))
    elif who.pattern == "stripes":
        for x in (-0.075, -0.02, 0.035):
            figure.shape(who.second, (x, 0.21), (x + 0.03, 0.21), (x + 0.03, 0.52), (x, 0.52))
    elif who.pattern == "print" and side != BACK:
        figure.oval(who.second, 0, 0.32, 0.05, 0.055)


def _head(figure: _Figure, who: SimpleNamespace, side: int) -> None:
    if who.long_hair and side != BACK:
        figure.oval(who.hair, 0, 0.12, 0.075, 0.12)
    figure.oval(who.skin, 0, 0.105, 0.06, 0.085)
    if side == BACK:
        figure.oval(who.hair, 0, 0.08, 0.066, 0.085)
        if who.long_hair:
            figure.oval(who.hair, 0, 0.13, 0.07, 0.12)
    else:
        towards = {FRONT: 0, LEFT: 0.03, RIGHT: -0.03}[side]  # where the hair is, not the face
        figure.oval(who.hair, towards, 0.05, 0.066, 0.045)


def _bag(figure: _Figure, who: SimpleNamespace, side: int) -> None:
    if who.bag_on_back:
        if side == BACK:
            figure.both(who.bag, (0.07, 0.22), (0.08, 0.43))
        elif side == FRONT:  # its straps
            for x in (-0.07, 0.045):
                figure.shape(who.bag, (x, 0.2), (x + 0.025, 0.2), (x + 0.025, 0.4), (x, 0.4))
        else:
            figure.oval(who.bag, 0.11 if side == LEFT else -0.11, 0.32, 0.05, 0.11)
    else:  # on the person's right, behind the body from the left
        x = {FRONT: -0.13, BACK: 0.13, LEFT: None, RIGHT: 0.0}[side]
        if x is not None:
            figure.shape(
                who.bag, (x - 0.05, 0.42), (x + 0.05, 0.42), (x + 0.06, 0.56), (x - 0.06, 0.56)
            )


def _in_the_way(image: Image.Image, seen_by: SimpleNamespace, rng: np.random.Generator) -> None:
    """A low wall, or a post at the left."""
    brush, fill = ImageDraw.Draw(image), _rgb(0.6 * seen_by.wall)
    if rng.random() < 0.5:
        brush.rectangle(
            (0, rng.uniform(0.47, 0.86) * image.height, image.width, image.height), fill
        )
    else:
        brush.rectangle((0, 0, rng.uniform(0.12, 0.34) * image.width, image.height), fill)


def _rgb(values: np.ndarray) -> Colour:
    return tuple(int(value) for value in np.clip(values, 0, 255))
