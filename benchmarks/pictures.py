"""Record files of faces to load: LFW if it is there, else drawn pictures."""

import os
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from bct.data.record_writer import RecordWriter
from bct.data.recordio import Header


def lfw_or_drawn(folder: Path) -> Path:
    """$BCT_SHARED/data/lfw/train.rec (default ../shared), else 4,096 pictures drawn in `folder`."""
    lfw = Path(os.environ.get("BCT_SHARED", "../shared")) / "data/lfw/train.rec"
    return lfw if lfw.is_file() else drawn(folder / "drawn.rec", 4096)


def drawn(path: Path, images: int) -> Path:
    """A record file of smooth pictures of 64 people; their sizes differ."""
    rng = np.random.default_rng(0)
    with RecordWriter(path) as writer:
        for key in range(images):
            smooth = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
            image = np.asarray(smooth.resize((112, 112), Image.Resampling.BICUBIC))
            data = simplejpeg.encode_jpeg(image, int(rng.integers(60, 96)))
            writer.write(key, Header(float(key % 64), key), data)
    return path
