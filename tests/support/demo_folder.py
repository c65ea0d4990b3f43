"""A folder like the demo's, with untrained models, for where the demo has not been."""

import json
import pickle
from pathlib import Path

import torch

from backbones import get_model
from support.pictures import jpeg, write_faces

MODELS = ("demo_w16_softmax_class30", "demo_w16_MixBCT", "demo_w16_arc_class70")


def demo_folder(folder: Path) -> None:
    """Models and data under the names that `make demo` uses, as few as the walk can do with."""
    for seed, name in enumerate(MODELS):
        torch.manual_seed(seed)
        (folder / name).mkdir(parents=True)
        torch.save(get_model("demo_w16", 64).state_dict(), folder / name / "model.pt")
        (folder / name / "model.json").write_text(json.dumps({"network": "demo_w16"}))
    (folder / "data").mkdir()
    same = [True, False] * 20
    images = [jpeg(i if s else i + 100 * k, k) for i, s in enumerate(same) for k in (0, 1)]
    (folder / "data" / "demo.bin").write_bytes(pickle.dumps((images, same)))
    write_faces(folder / "data" / "train_part_30_class.rec", [3, 4, 2])
