"""Imports a method's object from methods/<Name>/train.py, and a stand-in for its old artefacts."""

import runpy

import numpy as np
import torch

from bct.files import ROOT


def method_class(name: str):
    return runpy.run_path(str(ROOT / "methods" / name / "train.py"))[name]


class OldArrays:
    """Old artefacts held in memory; records which rows were read."""

    def __init__(self, **arrays):
        self.arrays, self.read = {k: np.asarray(v) for k, v in arrays.items()}, []

    def rows(self, kind, index):
        self.read.append((kind, index.tolist()))
        return torch.from_numpy(self.arrays[kind][index.numpy()])

    def whole(self, kind):
        return torch.from_numpy(self.arrays[kind])

    def table(self, kind):
        array = self.arrays[kind]
        return {name: torch.from_numpy(np.array(array[name])) for name in array.dtype.names}
