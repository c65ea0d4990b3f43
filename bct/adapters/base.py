"""What every adapter is: a map of embeddings from one model's space into another's.

Conventions are scikit-learn's: the constructor's arguments are the settings (get_params), fit
learns from rows of both spaces that belong together, and transform maps further rows.

A kind of its own is one file, see bct/adapters/__init__.py. One whose state is some arrays says
which: `arrays` and `restore` are all that save and load need. The file is an .npz without pickled
objects: these arrays and `adapter`, a JSON text with format, version, kind, settings and made_from.
"""

import inspect
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bct.adapters
from bct.errors import BctError
from bct.files import atomic
from bct.safe.tensors import read_tensors
from bct.stored.fingerprint import require_format
from bct.stored.vector_files import read_arrays

_FORMAT, _VERSION = "bct-adapter", 1


class Adapter:
    """float (n, source_width) -> float32 (n, target_width).

    source_width, target_width: int, known after fit or load. side_width: how many numbers of side
    information are appended to each row of the source; 0 for most.
    made_from: what it was fitted on, JSON values; whoever fits it may add fingerprints.
    """

    source_width: int
    target_width: int
    side_width: int = 0
    made_from: dict[str, Any]

    def fit(self, source: np.ndarray, target: np.ndarray) -> "Adapter":
        """Learns from the same items' rows.

        Args:
            source: float (n, source_width); target: float (n, target_width).

        Raises:
            BctError: rows that do not belong together, or are not numbers.
        """
        raise NotImplementedError

    def transform(self, source: np.ndarray) -> np.ndarray:
        """float (n, source_width + side_width) -> float32 (n, target_width). An embedding of zeros
        stays zeros. Raises BctError for rows that are not finite or not of this width."""
        raise NotImplementedError

    def transform_with_variance(self, source: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The same, and the predicted log-variance of each row's error, float32 (n,); None if the
        adapter predicts none, see predicts_variance."""
        return self.transform(source), None

    @property
    def predicts_variance(self) -> bool:
        return False

    def to(self, device: torch.device) -> "Adapter":
        """Where it computes; NumPy's adapters stay on the CPU."""
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """Its fitted state."""
        raise NotImplementedError

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the state that `arrays` gave. KeyError or ValueError if it is another's."""
        raise NotImplementedError

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings, as the constructor takes them."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> "Adapter":
        """Changes settings. BctError for one that does not exist."""
        for name, value in params.items():
            if name not in self.get_params():
                raise BctError(
                    f"{type(self).__name__} has no setting {name!r}",
                    f"choose from {', '.join(self.get_params()) or 'none'}",
                )
            setattr(self, name, value)
        return self

    def save(self, path: str | Path) -> None:
        """Writes a file that `load` and load_adapter read."""
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": type(self).__name__,
            "params": self.get_params(),
            "made_from": self.made_from,
        }
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, adapter=np.array(json.dumps(about)), **self.arrays())

    @classmethod
    def load(cls, path: str | Path) -> "Adapter":
        """Reads what `save` wrote. BctError for anything else."""
        arrays = read_arrays(path)
        about = _about(path, arrays)
        if about["kind"] != cls.__name__:
            raise BctError(
                f"{path} is an adapter {about['kind']}, not {cls.__name__}",
                "read it with bct.adapters.base.load_adapter",
            )
        try:
            adapter = cls(**about["params"])
            adapter.restore(arrays)
        except (TypeError, KeyError, ValueError) as error:
            raise BctError(
                f"{path} holds no {cls.__name__} ({type(error).__name__}: {error})", "save it again"
            ) from None
        adapter.made_from = about["made_from"]
        return adapter

    def check_source(self, source: np.ndarray) -> None:
        """Raises BctError for rows that transform does not take."""
        if not hasattr(self, "source_width"):
            raise BctError(f"this {type(self).__name__} is not fitted", "call fit, or load one")
        width = self.source_width + self.side_width
        if np.ndim(source) != 2 or source.shape[1] != width:
            raise BctError(
                f"the rows to map are {np.shape(source)}, the adapter takes (n, {width})",
                "give embeddings of the model that it was fitted on",
            )


def load_adapter(path: str | Path) -> Adapter:
    """Opens an adapter of whatever kind. The file says which; weights that say nothing are FCT's.

    Raises:
        BctError: no such file, none of these, or a kind that this version does not know.
    """
    path = Path(path)
    if _holds_arrays(path):
        kind = _about(path, read_arrays(path))["kind"]
    else:
        saved = read_tensors(path)
        kind = saved.get("adapter", "FCT") if isinstance(saved, dict) else "FCT"
    found = getattr(bct.adapters, kind, None) if isinstance(kind, str) else None
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise BctError(f"{path} is an adapter {kind!r}, which we do not have", "update bct")
    return found.load(path)


def _holds_arrays(path: Path) -> bool:
    """Whether it is what Adapter.save writes, or meant to be; torch's files are archives, too."""
    if path.suffix == ".npz" or not zipfile.is_zipfile(path):
        return path.suffix == ".npz"
    with zipfile.ZipFile(path) as archive:
        return "adapter.npy" in archive.namelist()


def _about(path: str | Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What an adapter's file says of itself."""
    try:
        about = json.loads(str(arrays["adapter"]))
    except (KeyError, ValueError, RecursionError):
        about = None
    require_format(about, path, _FORMAT, _VERSION)
    types = {"kind": str, "params": dict, "made_from": dict}
    if not all(isinstance(about.get(key), of) for key, of in types.items()):
        raise BctError(f"{path} is no adapter", "give a file that an adapter's save has written")
    return about
