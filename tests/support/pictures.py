"""Small record files of drawn pictures, for tests that need images but no faces."""

from pathlib import Path

import numpy as np
import simplejpeg

from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header


def picture(identity: int, variant: int, size: int = 112) -> np.ndarray:
    """uint8 (size, size, 3): stripes whose direction, width and colour belong to the identity."""
    own = np.random.default_rng([7, identity])
    nuisance = np.random.default_rng([8, identity, variant])
    y, x = np.mgrid[:size, :size] / size
    angle, frequency = own.uniform(0, np.pi), own.uniform(3, 12)
    wave = np.sin(
        2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + nuisance.uniform(0, 6)
    )
    image = own.uniform(40, 215, 3) + 60 * wave[..., None] * own.uniform(0.3, 1, 3)
    return np.clip(image + nuisance.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def jpeg(identity: int, variant: int, size: int = 112) -> bytes:
    return simplejpeg.encode_jpeg(picture(identity, variant, size), quality=95)


def write_faces(path: Path, counts: list[int], header: bool = True, array: bool = True) -> Path:
    """A record file with counts[c] images of identity c, in insightface's layout if `header`."""
    images, classes = sum(counts), len(counts)
    key = 1 if header else 0
    with RecordWriter(path) as writer:
        if header:
            writer.write(0, Header([images + 1, images + classes + 1]), b"")
        for identity, count in enumerate(counts):
            for variant in range(count):
                label = [identity, 0] if array else float(identity)
                writer.write(key, Header(label, key), jpeg(identity, variant))
                key += 1
        if header:
            for identity, count in enumerate(counts):
                first = 1 + sum(counts[:identity])
                writer.write(key, Header([first, first + count], key), b"")
                key += 1
    return path
