"""A network in an ONNX file, ours or anybody's, run by onnxruntime on the CPU.

What a graph wants done to the image is read from its metadata, under the key `bct.preprocessing`:
JSON such as {"size": 112, "colours": "RGB", "mean": 127.5, "std": 127.5}, for pixels of 0..255 from
which mean is subtracted before the division by std, each one number or three, of R, G and B.
tools/export_onnx.py writes it, and it can be added to any file. Without it the caller may say how
pixels are normalised, or the graph does, see bct.models.onnx_pixels.
"""

import importlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bct.data.images import SIZE
from bct.data.views import PIXELS, View
from bct.distributed import say
from bct.errors import BctError
from bct.files import sha256_file
from bct.models.onnx_pixels import wants_bytes
from bct.models.onnx_probe import probe, reason

PREPROCESSING = "bct.preprocessing"  # keys of the metadata
NETWORK = "bct.network"
WEIGHTS_FILE = "bct.weights_file_sha256"  # of the second file, when the weights have one
OURS = {
    "size": SIZE,
    "colours": "RGB",
    "mean": 127.5,
    "std": 127.5,
}  # as bct.data.images.to_network
_FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OnnxBackbone(nn.Module):
    """An onnxruntime session in the place of a network: no parameters, no gradient.

    Input (B, 3, H, W) float, normalised as `pixels` says; output (B, D) float32 on its device.

    Args:
        session: an onnxruntime.InferenceSession with one input and one output.
        embedding_size: D.
        batch: how many images the graph takes at once, None for any number.
        mean, std, bgr: what the graph wants, see above; bgr swaps the colours. None: as they come.
        pixels: how the images it gets are normalised, a key of bct.data.views.PIXELS.
        seconds: what an image takes; a batch may take 50 times that, and `patience` beside.
        network: a name of backbones.NETWORKS, None if the file doesn't say.
    """

    def __init__(
        self,
        session: Any,
        embedding_size: int,
        batch: int | None,
        mean: float | list[float] | None,
        std: float | list[float] | None,
        bgr: bool = False,
        network: str | None = None,
        pixels: str = "face",
        seconds: float = 1.0,
    ):
        super().__init__()
        self.seconds, self.patience, self.pixels = seconds, 60.0, pixels
        self.session, self.embedding_size, self.batch = session, embedding_size, batch
        mean_in, std_in = (torch.tensor(v).view(3, 1, 1) for v in PIXELS[pixels])
        mean, std = (
            own if given is None else torch.as_tensor(given, dtype=torch.float32).view(-1, 1, 1)
            for given, own in ((mean, mean_in), (std, std_in))
        )
        self.scale, self.shift, self.bgr = std_in / std, (mean_in - mean) / std, bgr
        self.network = network
        data = session.get_inputs()[0]
        self.input, self.dtype = data.name, _FLOATS[data.type]

    @property
    def takes_bytes(self) -> bool:
        """Whether the graph is fed pixels of 0..255, which it normalises itself."""
        mean_in, std_in = (torch.tensor(v).view(3, 1, 1) for v in PIXELS[self.pixels])
        return torch.equal(self.scale, std_in) and torch.equal(self.shift, mean_in)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.detach().float().cpu() * self.scale + self.shift  # (B, 3, H, W)
        x = (x.flip(1) if self.bgr else x).to(self.dtype)
        batch = self.batch or len(x)
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % batch))  # a fixed batch has to be full
        parts = [self._run(part.contiguous().numpy()) for part in x.split(batch)]
        out = torch.from_numpy(np.concatenate(parts)[: len(images)])  # (B, D)
        return out.float().to(images.device)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """(B, D). BctError for a graph that takes far longer than it did before: it may loop for
        certain images only."""
        options = require("onnxruntime").RunOptions()
        limit = self.patience + 50 * self.seconds * len(images)
        timer = threading.Timer(limit, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self.session.run(None, {self.input: images}, options)[0]
        except Exception as error:  # onnxruntime has a dozen kinds, without a common base
            if not options.terminate:
                raise
            raise BctError(
                f"the ONNX graph has not ended after {limit:.0f} s with {len(images)} images "
                f"({reason(error)})",
                "give a network of a usual kind, or a machine with less to do",
            ) from None
        finally:
            timer.cancel()


def load_onnx(path: str | Path, size: int = SIZE, pixels: str | None = None) -> OnnxBackbone:
    """Opens an ONNX file as a network for images of 3 x size x size.

    onnxruntime gets as many threads as torch has. A graph that takes one image at a time, by
    declaration or because of a constant inside, is run image by image.

    Args:
        pixels: how the images it will get are normalised, a key of bct.data.views.PIXELS; a graph
            whose metadata says nothing is fed them so. None: as those of faces, and the graph's
            first nodes say what it is fed.

    Raises:
        BctError: onnxruntime is missing, the file is not ONNX or has its weights elsewhere, or
            its graph has not one image input of this size and one output (B, D), does not say
            which pixels it wants, or takes more time or memory than a network can.
    """
    graph = _graph(path)
    require("onnxruntime")
    found = probe(path, size)
    if "unreadable" in found:
        raise _unreadable(path, found["unreadable"])
    inputs, outputs, metadata = found["inputs"], found["outputs"], found["metadata"]
    for kind, ends in (("input", inputs), ("output", outputs)):
        if len(ends) != 1:
            names = ", ".join(name for name, _, _ in ends)
            raise BctError(
                f"{path} has {len(ends)} {kind}s ({names}), not one",
                "export it with the image as its only input, the embedding as its only output",
            )
        name, of, _ = ends[0]
        if of not in _FLOATS:
            raise BctError(
                f"{path}: its {kind} {name} is a {of}, not of floats",
                "export it with float input and output",
            )
    wanted = _preprocessing(path, graph, metadata, size, pixels)
    expected = shape = inputs[0][2]  # (B, 3, H, W)
    if len(shape) == 4:
        own = (3, wanted["size"], wanted["size"])  # where the graph has a name or None: any size
        expected = [n if isinstance(n, int) else m for n, m in zip(shape[1:], own, strict=True)]
    if expected != [3, size, size]:
        raise BctError(
            f"{path} expects {'x'.join(map(str, expected))}, the images are 3x{size}x{size}",
            "give a model for aligned faces of that size, or say the size that it takes: --size, "
            "or import it, tools/import_model.py",
        )
    if "problem" in found:
        raise BctError(
            f"{path} does not give one embedding per image ({found['problem']})",
            "export it with one output, images x embedding size",
        )
    model = OnnxBackbone(
        _session(path),
        found["width"],
        found["batch"],
        wanted["mean"],
        wanted["std"],
        wanted["colours"] == "BGR",
        metadata.get(NETWORK),
        pixels or "face",
        found["seconds"],
    )
    return model.eval()


def size_in(path: str | Path) -> int | None:
    """The height and width that an ONNX file says its images have; None: it does not say.

    Raises BctError for a file that is none.
    """
    onnx = require("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
        said = {entry.key: entry.value for entry in model.metadata_props}.get(PREPROCESSING)
        sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    except Exception as error:  # as in _graph
        raise _unreadable(path, reason(error)) from None
    try:
        size = json.loads(said)["size"] if said else sides[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return None  # whoever opens it says what is wrong
    return size if type(size) is int and size > 0 else None


def require(name: str) -> ModuleType:
    """Imports a package of the optional extra `onnx`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BctError(
            f"ONNX files need {name} ({error})", "install the extra: pip install '.[onnx]'"
        ) from None


def _graph(path: str | Path) -> Any:
    """The onnx.GraphProto, without weights that lie in another file; these are checked."""
    onnx = require("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, onnx's and the system's, without a common base
        raise _unreadable(path, reason(error)) from None
    elsewhere = {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == tensor.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if elsewhere:
        # caches know a model by the hash of its file, which therefore has to hold the weights'
        hashes = [entry.value for entry in model.metadata_props if entry.key == WEIGHTS_FILE]
        weights = Path(path).with_name(f"{Path(path).name}.data")
        if not hashes or elsewhere != {weights.name}:
            raise BctError(
                f"{path} keeps weights in another file and not its hash",
                'join them: python -c "import onnx; '
                "onnx.save(onnx.load('model.onnx'), 'one.onnx')\"",
            )
        if not weights.is_file() or sha256_file(weights) != hashes[0]:
            raise BctError(
                f"{weights}, which holds the weights of {path}, is missing or another model's",
                "copy both files again, with the names tools/export_onnx.py gave them",
            )
    return model.graph


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a message: weights, constants, also in subgraphs and functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _tensors(child)


def _session(path: str | Path) -> Any:
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # its errors reach us as exceptions
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds, without a common base
        raise _unreadable(path, reason(error)) from None


def _unreadable(path: str | Path, why: str) -> BctError:
    return BctError(
        f"{path} can't be read as an ONNX file ({why})",
        "check the path; tools/export_onnx.py turns a model.pt into an ONNX file",
    )


def _preprocessing(
    path: str | Path, graph: Any, metadata: dict[str, str], size: int, pixels: str | None
) -> dict[str, Any]:
    """What the graph wants, with the keys of OURS."""
    if PREPROCESSING not in metadata:
        if pixels:
            return {"size": size, "colours": "RGB", "mean": None, "std": None}
        try:
            raw = wants_bytes(graph, graph.input[0].name)
        except ValueError as error:
            raise BctError(
                f"{path} does not say which pixels it wants: {error}",
                f"say how they are normalised, --pixels {', '.join(PIXELS)}; "
                f"or write {PREPROCESSING} into its metadata, such as {json.dumps(OURS)}",
            ) from None
        mean, std = (0.0, 1.0) if raw else (127.5, 127.5)
        fed = "pixels of 0..255" if raw else "(x - 127.5) / 127.5"
        why = "its first nodes normalise" if raw else "by insightface's rule"
        say(f"{path} has no {PREPROCESSING}: {why}, it is fed RGB, {fed}")
        return {"size": size, "colours": "RGB", "mean": mean, "std": std}
    try:
        said = json.loads(metadata[PREPROCESSING])
        wanted = {"size": int(said["size"]), "colours": said["colours"]}
        wanted |= {key: _per_channel(said[key]) for key in ("mean", "std")}
        if wanted["colours"] not in ("RGB", "BGR") or not np.all(np.array(wanted["std"]) > 0):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise BctError(
            f"{path}: its {PREPROCESSING} can't be used ({metadata[PREPROCESSING]})",
            f"write it like {json.dumps(OURS)}; colours may be BGR",
        ) from None
    return wanted


def _per_channel(said: Any) -> float | list[float]:
    """One number, or three. ValueError for other lists."""
    if not isinstance(said, list):
        return float(said)
    if len(said) != 3:
        raise ValueError
    return [float(value) for value in said]


def preprocessing(view: View) -> dict[str, Any]:
    """What a graph says that sees images as this view does."""
    mean, std = (list(values) for values in PIXELS[view.pixels])
    one = len({*mean}) == len({*std}) == 1
    return OURS | {"size": view.size} | {
        "mean": mean[0] if one else mean, "std": std[0] if one else std,
    }  # fmt: skip
