"""Files of tensors, as torch.save writes them: reading one executes nothing and checks its bytes;
equal values make equal files."""

import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import safe_globals

from bct.errors import BctError
from bct.files import atomic
from bct.safe.lists import _STAND_INS, _Array, _Type
from bct.safe.tensor_files import CONFIGS, NODES, NoTensorsError, check_file, most, shown

_WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "net_state_dict", "model")
_WRAPPERS += ("net", "backbone")
_PREFIXES = ("module.", "backbone.", "_orig_mod.")  # DistributedDataParallel's, torch.compile's
_COUNTERS = ("num_batches_tracked", "position_ids", "relative_position_index")  # integers
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class _AnyType(_Type):
    """numpy.dtype, also of what only lies beside weights: text, dates, complex numbers, fields."""

    kinds = _Type.kinds + "cSUMmV"


class Stranger:
    """Stands for an object of a class in CONFIGS: nothing of that class is run.

    state: what the object has, of plain values like all in the file.
    """

    state: Any = None

    def __init__(self, *_: Any):
        pass

    def __new__(cls, *_: Any):
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


_OURS = [  # in the place of numpy's and of bytes, which ask for memory by a number
    (_AnyType if stand_in is _Type else stand_in, f"{module}.{name}")
    for (module, name), stand_in in _STAND_INS.items()
    if module.startswith("numpy") or name == "bytes"
]
_OURS += [(OrderedDict if name in NODES else Stranger, name) for name in CONFIGS]


def read_tensors(path: str | Path, verify: bool = True, mapped: bool = False) -> Any:
    """torch.load on the CPU, of tensors, numpy's arrays and numbers, and plain values only; the
    config of AdvBCT comes as dicts, that of OpenCompatible as a Stranger.

    Nothing is built before the file is known to be torch's, and its tensors take no more memory
    than it can honestly hold: four times its size, or 64 MiB.

    Args:
        verify: compare the bytes with the CRC-32s in the file, which torch writes since 1.6 (files
            of older versions have none). False: just done.
        mapped: leave tensors in the file until they are looked at, for who wants the rest of it.

    Raises BctError when the file is damaged or holds anything else, and says what it is.
    """
    path = Path(path)
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise BctError(f"{path} {found}", "check the path")
    do = "give a file saved by torch.save that holds only tensors; copy or make it again"
    try:
        check_file(path)
        if verify and zipfile.is_zipfile(path):
            refuse_damaged(path, do)
        with warnings.catch_warnings(), safe_globals(_OURS):
            warnings.simplefilter("ignore")  # of pickles that it then refuses, or reads
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return _checked(path, saved)
    except BctError:
        raise
    except NoTensorsError as error:
        raise BctError(f"{path} can't be read as weights: it is {error.what}", error.do) from None
    except Exception as error:  # torch, pickle and zipfile raise a dozen kinds on damaged files
        # torch's first line advises to run what is in the file; its reason comes after it
        said = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
        reason = shown((said.splitlines() or [""])[0], 120)
        raise BctError(
            f"{path} can't be read as weights ({type(error).__name__}: {reason})", do
        ) from None


def _checked(path: Path, saved: Any) -> Any:
    """The same with numpy's arrays in the place of their stand-ins, if it is not too large.

    A tensor may be larger than its storage, of which each row may be the same one; many arrays
    may have the same bytes.
    """
    outer = [saved]
    held, seen, waiting = 0, set(), [outer]
    while waiting:
        container = waiting.pop()
        items = list(container.items() if isinstance(container, dict) else enumerate(container))
        for key, value in items:
            if isinstance(value, _Array):
                value = value.array
                if not isinstance(container, tuple):  # there it stays, and is of no use
                    container[key] = value
                if isinstance(value, np.ndarray):  # each is copied where it becomes a tensor
                    held += value.nbytes
            if id(value) not in seen and isinstance(value, torch.Tensor | dict | list | tuple):
                seen.add(id(value))
                if isinstance(value, torch.Tensor):
                    held += value.numel() * value.element_size()
                else:
                    waiting.append(value)
    if held > most(path):
        raise NoTensorsError(
            f"of tensors of {held:,} bytes, which a file of {path.stat().st_size:,} can't hold",
            "save contiguous copies of them: {key: value.clone() for ...}",
        )
    return outer[0]


def save_tensors(path: str | Path, value: Any) -> None:
    """torch.save of tensors and plain values: the file is whole or as before.

    Raises BctError, naming file and cause, when it can't be written.
    """
    try:
        with atomic(path) as temporary:
            fill_tensors(temporary, value, path)
    except OSError as error:
        raise _unwritten(path, error) from None


def fill_tensors(temporary: Path, value: Any, path: str | Path) -> None:
    """Saves what is to get the name `path`; see save_tensors.

    Equal values give equal bytes: an open file has no name that torch could put into the archive.
    """
    try:
        with open(temporary, "wb") as file:
            torch.save(value, file)
    except (OSError, RuntimeError) as error:  # torch's writer hides an OSError behind its own error
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise  # it comes whenever one dies
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise _unwritten(path, cause) from None


def _unwritten(path: str | Path, cause: Exception) -> BctError:
    reason = (getattr(cause, "strerror", None) or str(cause)).splitlines()[0]
    return BctError(f"{path} can't be written ({reason})", "free some space, or mend the folder")


def refuse_damaged(path: str | Path, do: str) -> None:
    """Raises BctError for an archive in which a file's bytes have another CRC-32 than it says."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise BctError(f"{path} is damaged: {shown(broken, 60)} in it has another checksum", do)


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The state_dict in a file or in a checkpoint of whatever system, without wrappers' prefixes.

    Raises BctError when there is none, or the file can't be read.
    """
    return unwrapped(path, read_tensors(path))


def unwrapped(path: str | Path, saved: Any) -> dict[str, torch.Tensor]:
    """The same of what read_tensors gave; path: for the message.

    Arrays of numpy are weights too. Plain values beside the weights, such as an epoch, are left
    out: whether a network's weights are all there is checked by whoever loads them into it.
    """
    for _ in range(8):  # wrappers in wrappers; a dict may hold itself
        inner = [saved[key] for key in _WRAPPERS if isinstance(saved, dict) and key in saved]
        inner = [value for value in inner if isinstance(value, dict)]
        if not inner:
            break
        saved = inner[0]
    weights = {}
    if isinstance(saved, dict) and all(isinstance(key, str) for key in saved):
        weights = {k: _tensor(v) for k, v in saved.items() if not isinstance(v, _PLAIN)}
    others = [key for key, value in weights.items() if value is None]
    if not weights or others:
        what = f"; its {shown(others[0], 40)} is no tensor" if others else ""
        raise BctError(
            f"{path} holds no state_dict{what}",
            "give the network's own weights, model.pt; class centres are for "
            "tools/import_model.py --classifier",
        )
    state: dict[str, torch.Tensor] = {}
    for key, value in weights.items():
        name = _own_name(key)
        if name in state:
            raise BctError(
                f"{path} holds two tensors that are {shown(name, 60)} without their prefixes",
                "save the weights of one network alone",
            )
        _check_tensor(path, key, value)
        state[name] = value
    return state


def _own_name(key: str) -> str:
    key = key.replace("._orig_mod.", ".")  # of a part that was compiled
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key


def _tensor(value: Any) -> torch.Tensor | None:
    """None for what is no tensor of weights."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        try:
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        except TypeError:  # a type that torch has not
            return None
    return value if torch.is_tensor(value) else None


def _check_tensor(path: str | Path, key: str, value: torch.Tensor) -> None:
    """Raises BctError for one that no network of ours can have."""
    wrong = None
    if value.layout is not torch.strided:
        wrong = "sparse"
    elif value.is_quantized:
        wrong = "quantised"
    elif value.is_complex():
        wrong = "of complex numbers"
    elif value.device.type == "meta":
        wrong = "without data (device meta)"
    elif not value.is_floating_point() and value.dim() > 0 and not key.endswith(_COUNTERS):
        wrong = f"of {str(value.dtype).removeprefix('torch.')}, not floats"
    elif value.is_floating_point() and not torch.isfinite(value.float()).all():
        wrong = "not finite (NaN or infinity)"
    if wrong:
        raise BctError(
            f"{path}: its tensor {shown(key, 60)} is {wrong}",
            "give weights that are dense, finite floats; if training made them so, train again",
        )
