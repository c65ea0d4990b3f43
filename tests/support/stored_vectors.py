"""Stored embeddings of an old and a new model, and a job of FCT on them."""

import json

import numpy as np
import torch

from bct.config import load_config
from bct.files import sha256_file, write_json
from bct.method import load_method
from bct.stored.artefacts import artefact_path, write_artefact
from bct.train import train
from support.old_models import CPU

FCT = load_method("FCT")
IMAGES, CLASSES, D_OLD, D_NEW, D_SIDE = 64, 8, 6, 5, 4


class VectorJob:
    """Embeddings of one data set by an old model and by a new one trained alone, with their labels
    and weights; side information; a config that names them."""

    def __init__(self, folder):
        rng = np.random.default_rng(3)
        self.folder, self.side = folder, folder / "side.npy"
        self.centres = 2 * rng.standard_normal((CLASSES, D_NEW))
        self.mix = rng.standard_normal((D_NEW, D_OLD))
        self.labels, self.old, self.new = self.sample(rng)
        weight, bias = np.float32(self.centres), np.float32(-(self.centres**2).sum(1) / 2)
        self.classifier = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
        np.save(self.side, np.float32(rng.standard_normal((IMAGES, D_SIDE))))
        for name, features in (("old", self.old), ("new", self.new)):
            (folder / name).mkdir()
            state = {f"cls_fc.{key}": value for key, value in self.classifier.items()}
            torch.save(state if name == "new" else {}, folder / name / "model.pt")
            write_json(folder / name / "model.json", {"num_classes": CLASSES})
            self.write(name, features)
        (folder / "job.py").write_text(
            "from easydict import EasyDict\nconfig = EasyDict()\nconfig.scenario = 'EXclass'\n"
            "config.old_config = 'old_class50'\nconfig.new_config = 'new_class100'\n"
            f"config.feature_save = {str(folder)!r}\nconfig.output = {str(folder / 'run')!r}\n"
            f"config.embedding_size = {D_NEW}\nconfig.hidden_size = 12\nconfig.amp = 'off'\n"
            "config.batch_size = 16\nconfig.num_epoch = 4\nconfig.warmup_epoch = 0\n"
            "config.frequent = 8\nconfig.num_workers = 0\n"
        )

    def sample(self, rng):
        """Labels of some images, old and new embeddings."""
        labels = rng.permutation(np.arange(IMAGES) % CLASSES)
        new = self.centres[labels] + rng.normal(0, 0.3, (IMAGES, D_NEW))
        return labels, np.float32(np.tanh(new @ self.mix)), np.float32(new)

    def path(self, name, kind="old_embedding"):
        return artefact_path(kind, self.folder, "EXclass", f"{name}_class100")

    def write(self, name, features, **changes):
        weights = self.folder / name / "model.pt"
        made_from = {"model": sha256_file(weights), "weights": str(weights), "data": "these images"}
        made_from |= {"data_path": "images", "parity": "corrected", **changes}
        kinds = (("old_embedding", features), ("old_embedding_label", self.labels))
        for kind, values in kinds:
            path, dtype = self.path(name, kind), str(values.dtype)
            with write_artefact(path, values.shape, dtype, kind=kind, **made_from) as out:
                out[:] = values

    def config(self, *overrides):
        return load_config(self.folder / "job.py", overrides, FCT.defaults)

    def train(self, *overrides, method=FCT):
        cfg = self.config(*overrides)
        assert train(cfg, method, CPU) == 0
        lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()
        return cfg, [step for step in map(json.loads, lines) if "loss" in step]
