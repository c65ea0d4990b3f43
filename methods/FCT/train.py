"""FCT and FastFill: h maps the stored old embeddings into the new model's space, which stays as it
is; see loss.py. The gallery is transformed (tools/transform_gallery.py), no image is seen again.

FastFill is uncertainty = True and classification = 1.

Needs of the old model: its embeddings of the new model's training set; of the new model, which was
trained alone (new_config): the same, and its classifier for the classification.
Differs from the published code:
- each image has its stored embeddings instead of new ones of another crop in each epoch;
- without side information B is left out; published (parity), it is fed the old embedding again.
"""

from backbones.fct import Transformation
from bct.errors import BctError
from bct.keys import choice, flag, number, text, whole
from bct.method import Method
from bct.old_model import OldModel
from bct.stored.vector_set import Vectors
from bct.train import main
from methods.FCT.loss import fct


class FCT(Method):
    maps_gallery = True
    defaults = {  # noqa: RUF012
        "target": choice("raw", "unit"),  # unit: for models that are compared by cosine
        "hidden_size": whole(2048, least=1, most=65536),
        "uncertainty": flag(False),  # FastFill: predict the error, too
        "classification": number(0.0, 0),  # w; FastFill: 1
        "side_embedding": text(None),  # path of stored side information; None: there is none
        "side_digest": text(None),  # of that file; read from it
        "old_embedding": text(None),  # path; None: it follows from scenario and old_config
        "new_embedding": text(None),  # path; None: it follows from scenario and new_config
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
    def classifies(cls, cfg):
        return False

    @classmethod
    def needs(cls, cfg):
        return ("old_embedding", "new_embedding")

    @classmethod
    def check_dimensions(cls, cfg, old):
        """h takes old embeddings of any width."""

    @classmethod
    def takes_a_part(cls, cfg):
        """It trains on the images that both models have an embedding of: Vectors.chosen."""
        return True

    @classmethod
    def data(cls, cfg):
        vectors = _vectors(cfg, OldModel.locate(cfg, "new_embedding"))
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
            weight, bias = old.classifier("new_embedding")
            self.unit = old.classifies_unit("new_embedding")
            if weight.shape != (cfg.num_classes, cfg.embedding_size):
                raise BctError(
                    f"the new model trained alone has a classifier {tuple(weight.shape)} for "
                    f"{cfg.num_classes} classes of {cfg.embedding_size}-d embeddings",
                    "give the embeddings of the model that was trained on these classes",
                )
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("bias", bias, persistent=False)

    def fetch(self, index, labels, rng):
        return {"new": self.old.rows("new_embedding", index)}

    def forward(self, embeddings, batch, head, rng):
        cfg = self.cfg
        return fct(
            embeddings.embedding,
            batch.old["new"],
            embeddings.log_variance,
            cfg.target == "unit",
            batch.labels,
            (self.weight, self.bias) if cfg.classification else None,
            cfg.classification,
            cfg.label_smoothing,
            bool(cfg.classification) and self.unit,
        )


def _vectors(cfg, new=None):
    path, how = OldModel.locate(cfg, "old_embedding")
    side = cfg.side_embedding or (path if cfg.parity == "published" else None)
    return Vectors(path, side, how, new)


if __name__ == "__main__":
    main(FCT, "configs/demo.py")
