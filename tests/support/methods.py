"""A stand-in for the artefacts of an old model."""

import numpy as np
import torch


class OldArrays:
    """Old artefacts held in memory; records which rows were read."""

    def __init__(self, absent=0, **arrays):
        self.absent = absent
        self.arrays, self.read = {k: np.asarray(v) for k, v in arrays.items()}, []

    def rows(self, kind, index):
        self.read.append((kind, index.tolist()))
        return torch.from_numpy(self.arrays[kind][index.numpy()])

    def present(self, kind):
        return torch.from_numpy(self.arrays[kind].any(1))

    def whole(self, kind):
        return torch.from_numpy(self.arrays[kind])

    def table(self, kind, *needed):
        array = self.arrays[kind]
        return {name: torch.from_numpy(np.array(array[name])) for name in array.dtype.names}
