"""Shared fixtures. BCT_SHARED names the folder with golden values (default ../shared)."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("BCT_SHARED", ROOT.parent / "shared"))

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} does not exist (set BCT_SHARED)")
    return SHARED
