"""Draws a face-like picture of a person of the demo data set (tools/demo/people.py).

Coordinates are face units: the origin lies between the eyes, x points to the picture's right, y
down, z to the viewer, and the pupils of an average face are one unit apart. The head is an
ellipsoid. Features sit on its surface and turn with it, its outline does not, so that a turned head
shows its eyes, nose and mouth off the middle and foreshortened. Everything is drawn as soft masks
over the picture's grid, in albedo; light is multiplied on at the end.
"""

import math
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageFilter

from tools.demo.canvas import Canvas, planes, spot
from tools.demo.people import LANDMARK_NOISE, as_worn

_ALL = (slice(None), slice(None))


def draw(face: SimpleNamespace, picture: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """Draws a person under the conditions of one picture.

    Args:
        face: from people.identity.
        picture: from people.nuisance or next_frame.

    Returns:
        image: uint8 (side, side, 3), a loose crop.
        landmarks: float64 (5, 2), left eye, right eye, nose tip, left and right mouth corner (x, y)
            in pixels, with the error a detector would make.
    """
    canvas = Canvas(as_worn(face, picture), picture)
    _background(canvas)
    _head(canvas)
    for side in (-1, 1):
        _eye(canvas, side)
    _nose(canvas)
    corners = _mouth(canvas)
    _hair(canvas)
    for side in (-1, 1):
        _brow(canvas, side)
    if canvas.face.glasses:
        _glasses(canvas)
    _light(canvas)
    _occlusion(canvas)
    rng = np.random.default_rng(picture.grain)
    image = _camera(canvas, rng)
    eyes = [canvas.project(side * face.eye_gap, 0) for side in (-1, 1)]
    nose = canvas.project(0, face.nose_y, face.nose_height)
    landmarks = np.array([canvas.pixel(*point) for point in (*eyes, nose, *corners)])
    return image, landmarks + LANDMARK_NOISE * rng.normal(size=(5, 2))


def _background(canvas: Canvas) -> None:
    """Backdrop, neck and shoulders."""
    face, picture, u, v = canvas.face, canvas.picture, canvas.u, canvas.v
    mix = 0.5 + 0.3 * v + _waves(picture.waves, u, v)
    top, bottom = picture.background
    canvas.image[:] = planes(top) + mix * planes(bottom - top)
    where = canvas.window(0, face.chin + 0.3, 1.0)
    canvas.paint(where, canvas.soft(np.abs(u[where]) - 0.62 * face.width), 0.80 * face.skin)
    where = canvas.window(0, face.chin + 2.2, 2.0)
    shoulders = face.chin + 0.35 + 0.2 * np.square(u[where])
    canvas.paint(where, canvas.soft(shoulders - v[where]), picture.clothes)


def _head(canvas: Canvas) -> None:
    """Hair behind the head, ears, and the skin with its relief and marks."""
    face, u, v = canvas.face, canvas.u, canvas.v
    if face.hair_length > 0.8:
        end = face.hair_length + 0.15 * np.cos(3 * u)
        wide = face.width + face.hair_side + 0.1 * np.maximum(v, 0)
        falls = np.maximum(np.maximum(np.abs(u) - wide, v - end), -0.6 - v)
        canvas.paint(_ALL, canvas.soft(falls, 0.08), 0.75 * face.hair)
    for side in (-1, 1):
        where = canvas.window(side * face.width, 0.2, 0.45)
        middle = side * (face.width + face.ear_out) - 0.25 * canvas.shift[0]  # the far one hides
        a, b = (u[where] - middle) / (0.5 * face.ear + 0.02), (v[where] - 0.18) / face.ear
        ear = (np.hypot(a, b) - 1) * face.ear
        canvas.paint(where, canvas.soft(ear), 0.92 * face.skin)
        canvas.shade(where, canvas.soft(ear + 0.45 * face.ear, 0.05), 0.25)
    tone = 1 + _waves(face.waves, u - 0.7 * canvas.shift[0], v - 0.7 * canvas.shift[1])
    canvas.paint(_ALL, canvas.skin, tone * planes(face.skin))
    for side in (-1, 1):
        canvas.bump(side * 0.62, 0.42, 0.34, 0.24, face.cheek)
        canvas.bump(side * face.eye_gap, 0.02, 0.30, 0.20, -0.45)
        where, a, b = canvas.decal(side * 0.62, 0.62, 0.6)
        canvas.paint(where, face.blush * spot(a / 0.28, b / 0.28), face.skin * (1, 0.68, 0.66))
    canvas.bump(0, face.chin - 0.25, 0.3, 0.2, 0.35)
    canvas.bump(0, -0.35, 0.5, 0.16, 0.2)
    where, a, b = canvas.decal(0, face.chin - 0.22, 0.3)
    canvas.shade(where, spot(a / 0.03, b / 0.11), face.cleft)
    for x, y, radius, darkness in face.spots:
        where, a, b = canvas.decal(x, y, 2 * radius)
        canvas.shade(where, canvas.soft(np.hypot(a, b) - radius, radius), darkness)
    if face.beard:
        where, a, b = canvas.decal(0, face.mouth_y, 1.6)
        top = face.beard_top - face.mouth_y + 0.5 - 0.9 * np.square(a / face.width)
        bare = np.square(a / (face.mouth_width + 0.1)) + np.square((b - 0.02) / 0.22)
        mask = canvas.soft(top - b, 0.25) * canvas.soft(0.25 - 0.25 * bare, 0.1)
        canvas.paint(where, face.beard * mask * canvas.skin[where], 0.9 * face.hair)


def _eye(canvas: Canvas, side: int) -> None:
    face, picture = canvas.face, canvas.picture
    where, a, b = canvas.decal(side * face.eye_gap, 0, 0.5, side, face.eye_tilt)
    w, h = face.eye_width, face.eye_height * max(picture.eyes, 0.05)
    arc = 1 - np.square(a / w)
    upper, lower = -1.1 * h * arc, 0.75 * h * arc  # the lids
    canvas.shade(where, spot(a / (1.2 * w), (b + 0.13) / 0.07), face.crease)
    canvas.shade(where, spot(a / w, (b - 0.15) / 0.05), 0.12)
    opening = canvas.soft(np.maximum(upper - b, b - lower))
    canvas.paint(where, opening, (0.93, 0.92, 0.90))
    c = a - side * picture.gaze
    r = np.hypot(c, b + 0.01)
    for radius, colour in (
        (face.iris, 0.55 * face.iris_colour),
        (0.82 * face.iris, face.iris_colour),
        (0.42 * face.iris, (0.04, 0.04, 0.04)),
    ):
        canvas.paint(where, opening * canvas.soft(r - radius), colour)
    glint = np.hypot(c + side * 0.035, b + 0.045)
    canvas.paint(where, opening * canvas.soft(glint - 0.02), (1, 1, 1))
    within = canvas.soft(np.abs(a) - w, 0.02)
    canvas.paint(where, within * canvas.soft(np.abs(b - upper) - face.lash), 0.25 * face.hair)
    canvas.shade(where, within * canvas.soft(np.abs(b - lower) - 0.006), 0.35)


def _brow(canvas: Canvas, side: int) -> None:
    face, picture = canvas.face, canvas.picture
    x, y, tilt = face.eye_gap + 0.03, face.brow_y - picture.brows, face.brow_angle + picture.frown
    where, a, b = canvas.decal(side * x, y, 0.45, side, tilt)
    t = a / face.brow_length
    line = face.brow_arch * (np.square(t) - 0.4)
    thick = face.brow_width * (0.75 - 0.4 * t)  # thinner outwards
    mask = canvas.soft(np.abs(b - line) - thick, 0.02)
    mask *= canvas.soft(np.abs(a) - face.brow_length, 0.05)
    canvas.paint(where, 0.85 * mask, 0.7 * face.hair)


def _nose(canvas: Canvas) -> None:
    face, w = canvas.face, canvas.face.nose_width
    u0, v0 = canvas.project(0, 0.05, 0.08)
    u1, v1 = canvas.project(0, face.nose_y, face.nose_height)
    where = canvas.window((u0 + u1) / 2, (v0 + v1) / 2, 0.62)
    v = canvas.v[where]
    t = np.minimum(np.maximum((v - v0) / (v1 - v0), -0.5), 1.3)  # down the ridge
    width = face.nose_bridge + (0.62 * w - face.nose_bridge) * np.square(np.clip(t, 0, 1))
    a = (canvas.u[where] - (u0 + t * (u1 - u0))) / width  # across it
    ridge = np.exp(-np.square(a)) * canvas.soft(v - v1, 0.16) * canvas.soft(v0 - v, 0.3)
    canvas.nx[where] += 1.6 * ridge * a
    flank = np.exp(-np.square((np.abs(a) - 1.25) / 0.7))
    canvas.shade(where, flank * canvas.soft(v - v1, 0.2) * canvas.soft(v0 - v, 0.4), 0.16)
    canvas.shade(where, np.exp(-4 * np.square(a)) * canvas.soft(np.abs(t - 0.6) - 0.4, 0.2), -0.07)
    canvas.bump(0, face.nose_y, 0.6 * w, 0.13, 0.5)
    where, a, b = canvas.decal(0, face.nose_y + 0.10, 0.45, lift=0.5 * face.nose_height)
    for c in (a, -a):
        wing = np.hypot((c - 0.82 * w) / (0.42 * w), (b + 0.03) / 0.085) - 1
        canvas.shade(where, np.exp(-np.square(wing / 0.4)) * canvas.soft(0.6 * w - c, 0.05), 0.28)
        hole = np.hypot((c - 0.45 * w) / (0.26 * w), (b - 0.02) / 0.035) - 1
        canvas.shade(where, canvas.soft(0.05 * hole, 0.02), 0.6)
    canvas.shade(where, spot(a / (0.9 * w), (b - 0.07) / 0.06), 0.22)


def _mouth(canvas: Canvas) -> list[tuple[float, float]]:
    """Returns where its corners are on the plane, left and right."""
    face, w, gap = canvas.face, canvas.face.mouth_width, canvas.picture.open
    where, a, b = canvas.decal(0, face.mouth_y, 0.62)
    ends = -(face.mouth_curve + canvas.picture.smile)  # a smile lifts them
    t = np.square(a / w)
    line, arc = ends * t, 1 - t
    inner, parted = line - 0.3 * gap * arc, line + 0.7 * gap * arc
    bow = 1 - 0.45 * np.exp(-np.square(a / 0.07))  # Cupid's bow
    upper, lower = inner - face.upper_lip * arc * bow, parted + face.lower_lip * arc
    if face.moustache:
        top = upper - 0.13 * np.maximum(arc, 0.3)
        hairs = canvas.soft(np.maximum(top - b, b - upper), 0.05)
        hairs *= canvas.soft(np.abs(a) - 0.95 * w, 0.15)
        canvas.paint(where, face.moustache * hairs, 0.9 * face.hair)
    canvas.shade(where, spot(a / w, (b - lower - 0.06) / 0.05), 0.2)
    canvas.paint(where, canvas.soft(np.maximum(upper - b, b - inner)), 0.88 * face.lips)
    canvas.paint(where, canvas.soft(np.maximum(parted - b, b - lower)), face.lips)
    if gap > 0.01:
        canvas.paint(where, canvas.soft(np.maximum(inner - b, b - parted)), (0.20, 0.07, 0.07))
        teeth = np.maximum(np.maximum(inner - b, b - inner - 0.6 * gap * arc), np.abs(a) - 0.75 * w)
        canvas.paint(where, canvas.soft(teeth), (0.92, 0.90, 0.86))
    canvas.shade(where, canvas.soft(np.abs(b - inner) - 0.008) * canvas.soft(np.abs(a) - w), 0.55)
    canvas.ny[where] += 1.2 * spot(a / w, (b - lower) / 0.06) * (b - lower + 0.03) / 0.06
    u, v = canvas.project(0, face.mouth_y)
    short_x, short_y = canvas.foreshortening(0, face.mouth_y)
    return [(u + side * w * short_x, v + ends * short_y) for side in (-1, 1)]


def _hair(canvas: Canvas) -> None:
    """Hair on top of the head and down its sides, as far as the hairline lets it."""
    face, u, v = canvas.face, canvas.u, canvas.v
    if face.hair_length < -1:
        return
    x, y = (u - 0.35 * canvas.shift[0]) / face.width, v - 0.35 * canvas.shift[1]
    line = face.hairline + face.hair_curve * np.square(x - face.hair_part)
    end = max(face.hair_length, 0.0) + 0.1  # of the sideburns, or of the hair over the ears
    line += np.square(np.clip(2.2 * np.abs(x) - 1.2, 0, 1)) * (end - line)
    top = canvas.head(u / (1 + face.hair_side / 2), v + face.hair_top / 2, face.hair_top / 2)
    beside = np.maximum(-canvas.outline, y - end)  # what sticks out past the skin
    mask = canvas.soft(np.maximum(top, np.minimum(y - line, beside)), 0.06)
    strands = np.cos(face.hair_wave * (u + 0.35 * np.cos(2.5 * v)) + 2 * np.abs(v))
    canvas.paint(_ALL, mask, (1 + 0.2 * strands) * planes(face.hair))


def _glasses(canvas: Canvas) -> None:
    face = canvas.face
    for side in (-1, 1):
        where, a, b = canvas.decal(side * face.eye_gap, 0.04, 0.9, side, lift=0.1)
        lens = _square(a / face.glasses, b / (0.8 * face.glasses))
        rim = np.abs(lens) * face.glasses - 0.022
        arm = np.maximum(np.abs(b + 0.06) - 0.02, face.glasses - a)
        bridge = np.maximum(np.abs(b + 0.04) - 0.02, face.glasses + a)
        straight = np.maximum(np.minimum(arm, bridge), -a - face.eye_gap)
        canvas.paint(where, canvas.soft(np.minimum(rim, straight)) * (a < 0.75), face.rim)
        canvas.shade(where, canvas.soft(lens), -0.05)


def _light(canvas: Canvas) -> None:
    """Lambert's law on the ellipsoid and its relief. What is beside the head goes on with it."""
    picture = canvas.picture
    lx = math.sin(picture.light) * picture.slant
    ly = -abs(math.cos(picture.light)) * picture.slant  # from above
    lz = math.sqrt(max(1 - 0.8 * (lx * lx + ly * ly), 0.1))
    nx = canvas.u / (1.25 * canvas.face.width)
    ny = (canvas.v - canvas.middle) / (1.25 * canvas.height)
    nz = np.sqrt(np.maximum(1 - np.square(nx) - np.square(ny), 0.1))
    facing = np.maximum((nx + canvas.nx) * lx + (ny + canvas.ny) * ly + nz * lz, 0)
    shade = (picture.ambient + (1.25 - picture.ambient) * facing) * picture.exposure
    tint = np.exp((picture.warmth, picture.tint, -picture.warmth))
    canvas.image *= np.minimum(shade, 1.6) * planes(tint)


def _occlusion(canvas: Canvas) -> None:
    """Something in front of the face, if this picture has it."""
    face, picture, u, v = canvas.face, canvas.picture, canvas.u, canvas.v
    a, b, c = picture.place
    if picture.occlusion == "sunglasses":
        for side in (-1, 1):
            where, p, q = canvas.decal(side * face.eye_gap, 0.04, 0.8, side, lift=0.1)
            bar = np.maximum(np.abs(q + 0.12) - 0.03, -p - face.eye_gap)
            lens = 0.3 * _square(p / 0.38, q / 0.27)
            canvas.paint(where, canvas.soft(np.minimum(lens, bar)), 0.3 * picture.cover)
    elif picture.occlusion == "mask":
        where, p, q = canvas.decal(0, face.nose_y + 0.05, 1.9)
        mask = canvas.soft(0.12 * np.square(p) - q - 0.15)
        mask *= canvas.soft(canvas.outline[where] - 0.04)
        canvas.paint(where, mask, (1 - 0.08 * np.cos(14 * q)) * planes(picture.cover))
    elif picture.occlusion == "hat":
        brim = v - 0.35 * canvas.shift[1] + 0.55 + 0.1 * c
        hat = canvas.soft(np.maximum(canvas.head(u, v, 0.25), brim), 0.03)
        canvas.paint(_ALL, hat, picture.cover)
    elif picture.occlusion == "bar":  # an arm, a microphone, a branch
        cos, sin = math.cos(math.pi * c), math.sin(math.pi * c)
        x, y = u - 0.9 * a, v - 0.6 - 0.9 * b
        bar = np.maximum(np.abs(cos * x + sin * y) - 0.2, cos * y - sin * x)
        canvas.paint(_ALL, canvas.soft(bar, 0.03), picture.cover)
    elif picture.occlusion == "box":
        x, y = np.abs(u - 0.8 * a), np.abs(v - 0.5 - 0.9 * b)
        box = np.maximum(x - 0.4 - 0.2 * c, y - 0.4 + 0.1 * c)
        canvas.paint(_ALL, canvas.soft(box), picture.cover)


def _camera(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Tone curve, blur and noise. Returns uint8 (H, W, 3)."""
    picture = canvas.picture
    if picture.grey:
        canvas.image[:] = canvas.image.mean(0)
    levels = 255 * np.minimum(np.maximum(canvas.image, 0), 1) ** picture.gamma
    pixels = Image.merge("RGB", [Image.fromarray(plane) for plane in levels.astype(np.uint8)])
    if picture.blur > 0.25:
        pixels = pixels.filter(ImageFilter.BoxBlur(picture.blur))
    grain = picture.noise * rng.standard_normal((*levels.shape[1:], 1), np.float32)
    return np.clip(np.asarray(pixels) + grain.astype(np.int16), 0, 255).astype(np.uint8)


def _square(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance to the outline of a square with round corners, in units of half its side."""
    return np.sqrt(np.sqrt(np.square(a * a) + np.square(b * b))) - 1


def _waves(waves: list[list[float]], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return sum(strength * np.cos(fx * u + (fy * v + at)) for fx, fy, at, strength in waves)
