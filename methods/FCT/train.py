"""FCT and FastFill: h maps the stored old embeddings into the new model's space, which stays as it
is. The gallery is transformed (tools/transform_gallery.py), no image is seen again.

    loss     = mean_i (e_i + w ce_i)                                                FCT: w = 0
             = mean_i (exp(-s_i) (e_i + w ce_i) + s_i) / 2         uncertainty      FastFill: w = 1
    e_i      = |f_i - h_i|^2 / d_n, or with target = "unit" |n(f_i) - n(h_i)|^2,  n(v) = v / |v|
    ce_i     = -log softmax_y( V h_i + b ), smoothed by label_smoothing
    h_i, s_i = h(o_i, z_i)

o_i is the stored old embedding of an image, z_i its side information, f_i the embedding of the new
model, which was trained alone, V and b that model's own classifier: all are constants. s_i is the
predicted log-variance of the error; backfilling begins where it is largest.

Papers: Ramanujan et al., Forward Compatible Training, CVPR 2022, arXiv 2112.02805; Jaeckle et al.,
FastFill, ICLR 2023.
Needs of the old model: its embeddings of the new model's training set; of the new model: the same.
Differs from the published code:
- each image has its stored embeddings instead of new ones of another crop in each epoch;
- without side information B is left out; published (parity), it is fed the old embedding again.
"""

import torch
import torch.nn.functional as F

from backbones.fct import Transformation
from bct.errors import BctError
from bct.method import Method
from bct.models.reference_checkpoints import reference_classifier
from bct.old_model import OldModel
from bct.stored.vector_set import Vectors
from bct.train import main


class FCT(Method):
    defaults = {  # noqa: RUF012
        "target": "raw",  # or "unit", for models that are compared by cosine
        "hidden_size": 2048,
        "uncertainty": False,  # FastFill: predict the error, too
        "classification": 0.0,  # w; FastFill: 1
        "side_embedding": None,  # path of stored side information; None: there is none
        "side_digest": None,  # of that file; read from it
        "old_embedding": None,  # path; None: it follows from scenario and old_config
        "new_embedding": None,  # path; None: it follows from scenario and new_config
        "network": "fct",
        "head": "none",
        "optimizer": "adam",
        "lr": 5e-4,
        "lr_policy": "cosine",
        "weight_decay": 2.0**-15,
        "batch_size": 1024,  # published: over all GPUs
        "num_epoch": 80,
        "warmup_epoch": 5,
        "freeze_statistics_at": 0.5,
        "clip_norm": 1e9,  # not clipped
    }

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding", "new_embedding")

    @classmethod
    def check_dimensions(cls, cfg, old):
        """h takes old embeddings of any width."""

    @classmethod
    def data(cls, cfg):
        vectors = _vectors(cfg)
        cfg.side_digest = vectors.side_digest  # so that the run depends on what is in the file
        return vectors

    @classmethod
    def backbone(cls, cfg, old, dtype):
        """h, always in float32."""
        d_side = _vectors(cfg).width - old.dim
        sizes = old.dim, cfg.embedding_size, d_side, cfg.hidden_size, cfg.uncertainty
        return Transformation(*sizes)

    def __init__(self, cfg, old):
        super().__init__(cfg, old)
        if cfg.target not in ("raw", "unit"):
            raise BctError(f"target = {cfg.target!r}", "choose from raw, unit")
        if cfg.batch_size < 2:
            raise BctError("batch norm can't train on batch_size = 1", "set it to 2 or more")
        if cfg.network != "fct":
            raise BctError(f"FCT trains no network {cfg.network!r}", "leave `network` out")
        new, of_old = old.manifests["new_embedding"], old.manifests["old_embedding"]
        if new["dim"] != cfg.embedding_size:
            raise BctError(
                f"the new model's embeddings have {new['dim']} dimensions, embedding_size is "
                f"{cfg.embedding_size}",
                f"set embedding_size={new['dim']}",
            )
        if new.get("parity") != of_old.get("parity"):
            raise BctError(
                "old and new embeddings are of other views: one was extracted with mirrored images",
                "extract both with the same parity=",
            )
        if cfg.classification:
            weight, bias = reference_classifier(new["weights"])
            if weight.shape != (cfg.num_classes, cfg.embedding_size):
                raise BctError(
                    f"{new['weights']} has a classifier {tuple(weight.shape)} for "
                    f"{cfg.num_classes} classes of {cfg.embedding_size}-d embeddings",
                    "give the embeddings of the model that was trained on these classes",
                )
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("bias", bias, persistent=False)

    def fetch(self, index, labels, rng):
        return {"new": self.old.rows("new_embedding", index)}

    def forward(self, embeddings, batch, head, rng):
        mapped, s = embeddings
        if self.cfg.target == "unit":
            error = (F.normalize(batch.old["new"]) - F.normalize(mapped)).square().sum(1)  # (B,)
        else:
            error = (batch.old["new"] - mapped).square().mean(1)
        losses = {"error": error}
        if self.cfg.classification:
            each = F.cross_entropy(
                F.linear(mapped, self.weight, self.bias),
                batch.labels,
                reduction="none",
                label_smoothing=self.cfg.label_smoothing,
            )
            losses["cls"] = self.cfg.classification * each
        if s is not None:
            losses = {name: torch.exp(-s) * each / 2 for name, each in losses.items()}
            losses["variance"] = s / 2
        return {name: each.mean() for name, each in losses.items()}


def _vectors(cfg):
    path, how = OldModel.locate(cfg, "old_embedding")
    side = cfg.side_embedding or (path if cfg.parity == "published" else None)
    return Vectors(path, side, how)


if __name__ == "__main__":
    main(FCT, "configs/demo.py")
