"""FCT's and FastFill's transformation of old embeddings, see backbones/fct.py, as an adapter.

Its file is the model.pt that methods/FCT/train.py writes, or one with the published names.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.fct import from_state
from backbones.inference import fold_batch_norm
from bct.adapters.base import Adapter
from bct.errors import BctError
from bct.files import atomic, sha256_file
from bct.rows import single_rows
from bct.safe.tensors import read_state

_BLOCK = 1 << 13  # rows mapped at once


class FCT(Adapter):
    """float (n, source_width + side_width) -> float32 (n, target_width): a row is an old embedding
    and, if the transformation was trained with it, its side information.

    An embedding of zeros stays zeros: the network would make one of it that looks like any other.
    """

    network: torch.nn.Module

    def fit(self, source: np.ndarray, target: np.ndarray) -> "FCT":
        """Refuses: it has a training of its own. Raises BctError."""
        raise BctError(
            "FCT's transformation is not fitted here, it is trained",
            "run methods/FCT/train.py, then load the model.pt that it writes",
        )

    @classmethod
    def load(cls, path: str | Path) -> "FCT":
        adapter = cls()
        adapter._take(read_state(path))
        adapter.made_from = {"weights": sha256_file(path)}
        return adapter

    def save(self, path: str | Path) -> None:
        with atomic(path) as temporary:
            torch.save(self.network.state_dict(), temporary)

    def transform(self, source: np.ndarray) -> np.ndarray:
        return self.transform_with_variance(source)[0]

    @torch.inference_mode()
    def transform_with_variance(self, source: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        self.check_source(source)
        embedding = np.empty((len(source), self.target_width), np.float32)
        variance = np.empty(len(source), np.float32) if self.predicts_variance else None
        for start in range(0, len(source), _BLOCK):
            rows = slice(start, start + _BLOCK)
            x = single_rows(source[rows], name=lambda row, start=start: start + row)
            mapped = self._folded(torch.tensor(x, device=self.device))
            embedding[rows] = mapped.embedding.cpu().numpy()
            embedding[rows][~x[:, : self.source_width].any(axis=1)] = 0
            if variance is not None:
                variance[rows] = mapped.log_variance.cpu().numpy()
        return embedding, variance

    @property
    def predicts_variance(self) -> bool:
        return hasattr(self.network, "uncertainty")

    def to(self, device: torch.device) -> "FCT":
        self.device = torch.device(device)
        self._folded.to(self.device)
        return self

    def _take(self, state: dict[str, Any]) -> None:
        self.network = from_state(state, uncertainty=True)
        self.source_width, self.side_width = self.network.widths
        self.target_width = self.network.embedding_size
        self._folded = fold_batch_norm(deepcopy(self.network))
        self.device = torch.device("cpu")
