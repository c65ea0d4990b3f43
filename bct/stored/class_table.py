"""The columns of the class statistics, one record per class; see bct.stored.class_statistics."""

import numpy as np

NUMBERS = ("radius", "smallest_radius", "angle", "cosine")
COUNTS = ("count", "kept", "kept_angles")


def class_statistics_dtype(dim: int) -> np.dtype:
    numbers = [(name, np.float32) for name in NUMBERS]
    counts = [(name, np.int64) for name in COUNTS]
    return np.dtype([("centre", np.float32, (dim,)), *numbers, *counts])
