"""The people of the demo data set (tools/make_demo_data.py) in numbers, and what pictures add.

A person is a set of parameters that never changes (`identity`); a picture adds everything that says
nothing about who it is: pose, expression, hairdo, light, camera, occlusion (`nuisance`).
tools/demo/faces.py turns the two into pixels, and explains the coordinates: one unit is the
distance between the pupils of an average face, y points down from the eyes.
"""

import math
from types import SimpleNamespace

import numpy as np

# How hard the pictures are: these set how well a small network can tell the people apart.
YAW, PITCH, ROLL = 0.40, 0.20, 0.20  # standard deviations of the head's pose, radians
EXPRESSION = 1.0  # mouth, eyes and brows; 0: always neutral
HAIR = 1.0  # how differently a person wears hair and beard; 0: always the same
LIGHT = 1.1  # direction, contrast and strength of the light; 0: even light
TINT = 0.13  # standard deviation of the colour temperature
BLUR = 0.9  # mean radius of the blur, pixels
NOISE = 6.0  # mean standard deviation of the sensor's noise, grey levels
OCCLUDED = 0.30  # share of the pictures with something in front of the face
LANDMARK_NOISE = 1.3  # standard deviation of the landmarks, pixels, as a detector has it
LIKENESS = 0.45  # of the people; 0: they differ as much as they can, 1: all have the same measures
SIDES = (128, 160)  # of the loose crops, pixels

_MEASURES = {  # low, high of a person's measures, in face units unless stated
    "width": (0.98, 1.20),  # half of the head's
    "chin": (1.62, 1.95),
    "crown": (-1.75, -1.50),
    "jaw": (0.0, 0.8),  # 0: round, 1: square
    "taper": (0.04, 0.30),  # how much narrower the chin is than the cheeks
    "eye_gap": (0.45, 0.56),  # half of the distance between the pupils
    "eye_width": (0.19, 0.27),
    "eye_height": (0.075, 0.135),
    "eye_tilt": (-0.18, 0.14),  # radians
    "iris": (0.090, 0.120),
    "lash": (0.012, 0.035),
    "crease": (0.00, 0.35),  # depth of the shade above the eye
    "brow_y": (-0.42, -0.27),
    "brow_length": (0.25, 0.36),
    "brow_width": (0.022, 0.075),
    "brow_angle": (-0.22, 0.16),
    "brow_arch": (0.00, 0.12),
    "nose_y": (0.47, 0.70),  # of its tip
    "nose_width": (0.12, 0.23),  # half
    "nose_height": (0.20, 0.42),  # of its tip above the face
    "nose_bridge": (0.05, 0.12),  # half
    "mouth_y": (1.04, 1.26),
    "mouth_width": (0.31, 0.50),  # half
    "upper_lip": (0.030, 0.090),
    "lower_lip": (0.055, 0.130),
    "mouth_curve": (-0.05, 0.05),
    "cleft": (0.0, 0.35),  # of the chin
    "cheek": (0.0, 0.5),  # height of the cheekbones
    "blush": (0.0, 0.45),
    "ear": (0.16, 0.30),  # half of its height
    "ear_out": (0.02, 0.15),
    "hairline": (-1.15, -0.72),
    "hair_curve": (-0.10, 0.60),  # of the hairline, up or down at the temples
    "hair_part": (-0.45, 0.45),  # where that curve is highest
    "hair_top": (0.10, 0.40),  # thickness above the skull
    "hair_side": (0.02, 0.30),
    "hair_wave": (4.0, 15.0),  # waves per unit in its texture
    "beard_top": (0.55, 1.0),
}
_LENGTHS = (-9.0, 0.0, 0.4, 1.2, 2.6)  # y where the hair ends; -9: bald
_SKIN = [
    *((0.95, 0.80, 0.72), (0.90, 0.72, 0.60), (0.82, 0.62, 0.47)),
    *((0.68, 0.47, 0.34), (0.52, 0.35, 0.26), (0.38, 0.26, 0.20)),
]
_HAIR = [
    *((0.09, 0.08, 0.08), (0.20, 0.13, 0.09), (0.36, 0.22, 0.13)),
    *((0.55, 0.27, 0.12), (0.80, 0.62, 0.34), (0.62, 0.60, 0.58)),
]
_IRIS = [
    *((0.28, 0.17, 0.09), (0.18, 0.11, 0.07), (0.32, 0.48, 0.66)),
    *((0.34, 0.50, 0.30), (0.45, 0.48, 0.50)),
]
_LIPS = [(0.74, 0.36, 0.36), (0.80, 0.46, 0.44), (0.60, 0.25, 0.28)]


def identity(rng: np.random.Generator) -> SimpleNamespace:
    """The parameters of one person: floats, colours float64 (3,), lists of waves and spots."""
    face = SimpleNamespace()
    for name, (low, high) in _MEASURES.items():
        average = (low + high) / 2
        setattr(face, name, average + (rng.uniform(low, high) - average) * (1 - LIKENESS))

    tone = rng.uniform(0, len(_SKIN) - 1)
    below = int(tone)
    lighter, darker = np.array(_SKIN[below]), np.array(_SKIN[below + 1])
    face.skin = _varied(lighter + (tone - below) * (darker - lighter), rng)
    dark = rng.random() < 0.18 * tone  # dark skin and fair hair rarely meet
    face.hair = _varied(_HAIR[rng.integers(2 if dark else len(_HAIR))], rng)
    face.iris_colour = _varied(_IRIS[rng.integers(2 if dark else len(_IRIS))], rng)
    lips = np.array(_LIPS[rng.integers(len(_LIPS))])
    face.lips = _varied(0.5 * lips + 0.5 * face.skin * (0.95, 0.70, 0.70), rng)

    face.hair_length = float(rng.choice(_LENGTHS, p=[0.08, 0.22, 0.30, 0.20, 0.20]))
    beard = rng.random() < 0.35 and face.hair_length < 1
    face.beard = rng.uniform(0.15, 0.85) if beard else 0.0
    face.moustache = rng.uniform(0.2, 0.9) if rng.random() < (0.7 if beard else 0.1) else 0.0
    face.glasses = rng.uniform(0.25, 0.36) if rng.random() < 0.15 else 0.0  # half of a lens
    face.rim = rng.uniform(0.05, 0.5, 3)
    # blotches of the skin, as waves over the face: frequency in x, in y, phase, strength
    face.waves = rng.uniform((-5, -5, 0, 0.01), (5, 5, 2 * math.pi, 0.05), (3, 4)).tolist()
    # moles, and freckles for some: x, y, radius, darkness
    moles = rng.uniform((-0.8, -0.5, 0.03, 0.5), (0.8, 1.5, 0.05, 0.8), (rng.integers(3), 4))
    freckles = rng.integers(10, 24) if rng.random() < 0.25 else 0
    freckles = rng.uniform((-0.8, -0.1, 0.014, 0.15), (0.8, 0.9, 0.024, 0.35), (freckles, 4))
    face.spots = [*moles.tolist(), *freckles.tolist()]
    return face


def nuisance(rng: np.random.Generator) -> SimpleNamespace:
    """The parameters of one picture."""
    normal, uniform = rng.normal, rng.uniform
    side = int(rng.integers(SIDES[0], SIDES[1] + 1))
    return SimpleNamespace(
        side=side,
        x=side * (0.50 + 0.03 * normal()),  # of the point between the eyes
        y=side * (0.43 + 0.03 * normal()),
        scale=side * uniform(0.225, 0.265),  # pixels per face unit
        roll=_limited(ROLL * normal(), 0.5),
        yaw=_limited(YAW * normal(), 0.65),
        pitch=_limited(PITCH * normal(), 0.35),
        smile=EXPRESSION * uniform(-0.03, 0.13),
        open=EXPRESSION * max(0.0, uniform(-0.16, 0.17)),
        eyes=1 + EXPRESSION * (uniform(-0.45, 0.25) if rng.random() > 0.04 else -0.85),
        brows=EXPRESSION * uniform(-0.05, 0.09),
        frown=EXPRESSION * 0.10 * normal(),
        gaze=EXPRESSION * uniform(-0.06, 0.06),
        tied=rng.random() < 0.35 * HAIR,  # long hair, behind the head
        fringe=HAIR * 0.12 * normal(),
        part=HAIR * 0.35 * normal(),
        volume=1 + HAIR * uniform(-0.5, 0.5),
        stubble=1 - HAIR * uniform(0.0, 0.7),
        glasses=rng.random() < 0.85,  # who has glasses mostly wears them
        light=uniform(-math.pi, math.pi),  # direction it comes from
        slant=LIGHT * uniform(0.0, 1.0),  # 0: it comes from the camera, 1: nearly from the side
        ambient=max(1 - LIGHT * uniform(0.25, 0.75), 0.15),
        exposure=1.05 * math.exp(LIGHT * 0.18 * normal()),
        gamma=math.exp(LIGHT * 0.18 * normal()),
        warmth=TINT * normal(),
        tint=0.4 * TINT * normal(),
        grey=rng.random() < 0.04,
        blur=rng.exponential(BLUR),
        noise=NOISE * uniform(0.3, 1.7),
        quality=int(rng.integers(60, 96)),  # of the JPEG
        background=uniform(0.1, 0.9, (2, 1)) + 0.09 * normal(size=(2, 3)),  # at the top, the bottom
        waves=uniform((-2, -2, 0, 0.0), (2, 2, 2 * math.pi, 0.16), (2, 4)).tolist(),  # in it
        clothes=uniform(0.1, 0.8) + 0.15 * normal(size=3),
        occlusion=_occlusion(rng),
        place=uniform(-1, 1, 3).tolist(),  # of what covers the face
        cover=uniform(0.1, 0.9, 3),  # and its colour
        grain=int(rng.integers(2**32)),  # seed of the noise
    )


def next_frame(picture: SimpleNamespace, rng: np.random.Generator) -> SimpleNamespace:
    """A picture of the same moment, as the next frame of a video is: nearly the same."""
    steps = {"x": 1.5, "y": 1.5, "roll": 0.03, "yaw": 0.04, "pitch": 0.03, "light": 0.05}
    steps |= {"smile": 0.015, "eyes": 0.06, "gaze": 0.01, "warmth": 0.01}
    frame = SimpleNamespace(**vars(picture))
    for name, step in steps.items():
        setattr(frame, name, getattr(picture, name) + step * rng.normal())
    frame.grain = int(rng.integers(2**32))
    return frame


def as_worn(face: SimpleNamespace, picture: SimpleNamespace) -> SimpleNamespace:
    """The person with hair, beard and glasses as they are in this picture."""
    worn = SimpleNamespace(**vars(face))
    if picture.tied:
        worn.hair_length = min(face.hair_length, 0.0)
    worn.hairline += picture.fringe
    worn.hair_part += picture.part
    worn.hair_top *= picture.volume
    worn.hair_side *= picture.volume
    worn.beard *= picture.stubble
    worn.moustache *= picture.stubble
    if not picture.glasses or picture.occlusion == "sunglasses":
        worn.glasses = 0.0
    return worn


def detector_score(picture: SimpleNamespace, rng: np.random.Generator) -> float:
    """A face detector's confidence, 0.5 to 1: lower for turned, blurred and covered faces."""
    score = 0.99 - 0.06 * picture.blur - 0.15 * abs(picture.yaw) - 0.02 * abs(rng.normal())
    return float(np.clip(score - 0.2 * (picture.occlusion is not None), 0.5, 1.0))


def _occlusion(rng: np.random.Generator) -> str | None:
    kind = str(rng.choice(["sunglasses", "mask", "hat", "bar", "box"]))
    return kind if rng.random() < OCCLUDED else None


def _varied(colour: np.ndarray | tuple, rng: np.random.Generator) -> np.ndarray:
    """A shade lighter or darker, and a little off in hue."""
    factor = np.exp(0.08 * rng.normal() + 0.03 * rng.normal(size=3))
    return np.clip(np.asarray(colour) * factor, 0.02, 0.98)


def _limited(value: float, most: float) -> float:
    return min(max(value, -most), most)
