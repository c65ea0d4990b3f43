"""Checkpoints of other systems: the .pth.tar of OpenBCT, AdvBCT and OpenCompatible, BT-2's
.checkpoint, FCT's and BT-2's TorchScript, and the classifiers in them.

OpenBCT: {epoch, arch, state_dict, best_acc1, optimizer}, torchvision's keys.
AdvBCT: {epoch, arch: "DistributedDataParallel", model, optimizer, grad_scaler, config, ...}, keys
convnet.* (timm's), projection_dim.weight, bn.*, projection_cls.weight; config of yacs.
OpenCompatible: the same, keys backbone.* (torchvision's), fc_emb.*, fc_classifier.weight.
BT-2: {epoch, model_state_dict, optimizer_state_dict, loss}; of BT² with P and Q as torch's
parametrisation has them (base B, trained X), whose sizes to_add_dim and C it does not keep:

    W = B exp(A),   A = tril(X) - tril(X)'
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bct.data.images import Size, shape_of
from bct.errors import BctError
from bct.keys import LARGEST_IMAGE
from bct.models.about import said_beside
from bct.safe.tensors import Stranger, read_tensors, refuse_damaged, unwrapped

TORCHSCRIPT = "torchscript"  # in the place of a network's name
_CLASSIFIERS = ("cls_fc", "projection_cls", "fc_classifier", "fc_classify", "fc_out", "fc")
_CLASSIFIERS += ("classifier.6", "heads.head")
_OF_IRESNET = "features.running_mean"  # beside it, fc belongs to the network


class Said(NamedTuple):
    """What a checkpoint's config says, None where it does not.

    network: by our names. size: of the images. scale: s of its classifier, if that is of cosines.
    """

    network: str | None = None
    size: int | None = None
    scale: float | None = None


def said_in(path: str | Path) -> Said:
    """What AdvBCT's and OpenCompatible's configs say; of OpenBCT's files the network alone.

    Raises BctError like read_tensors.
    """
    return said_by(read_tensors(path))


def said_by(saved: Any) -> Said:
    """The same of what read_tensors gave."""
    saved = saved if isinstance(saved, dict) else {}
    arch, model, config = (saved.get(key) for key in ("arch", "model", "config"))
    keys = {k.removeprefix("module.") for k in model} if _named(model) else set()
    config = config.state if isinstance(config, Stranger) else config
    if "projection_dim.weight" in keys:
        compatible = _at(config, "TRAIN", "TYPE") not in (None, "base")
        arch = _at(config, "NEW_MODEL" if compatible else "MODEL", "ARCH")
        margin = _at(config, "LOSS", "TYPE") if compatible else None
        size, scale = _at(config, "TRAIN", "INPUT_SIZE"), _at(config, "LOSS", "SCALE")
        name = f"timm:{arch}"
    elif "fc_emb.weight" in keys:
        config = _at(config, "_config")
        arch = _at(config, "new_model", "arch")
        margin, scale = (_at(config, "loss", key) for key in ("type", "scale"))
        size = _at(config, "dataset", "img_size")
        name = f"gem_{arch}{'_learnt' if 'backbone.avgpool.p' in keys else ''}"
    else:
        return Said(arch if isinstance(arch, str) else None)
    cosine = margin in ("arcface", "cosface") and type(scale) in (int, float) and scale > 0
    return Said(
        name if isinstance(arch, str) else None,
        size if type(size) is int and 0 < size <= LARGEST_IMAGE else None,
        float(scale) if cosine else None,
    )


def _at(config: Any, *keys: str) -> Any:
    """config[key][key]..., None where that is not there."""
    for key in keys:
        config = config[key] if isinstance(config, dict) and key in config else None
    return config


def _named(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(key, str) for key in state)


def reference_classifier(
    path: str | Path, network: str | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The classifier that a checkpoint holds beside the network.

    Taken from our model.pt, OpenBCT's .pth.tar (its `kernel`, if there is one, else fc), AdvBCT's
    and OpenCompatible's, BT-2's .checkpoint, torchvision's weights, TorchScript whose model is one
    of these; and from files that hold nothing else: .npy (K, d), or a saved tensor (K, d), alone or
    with a vector (K,).

    Args:
        network: TORCHSCRIPT allows a TorchScript archive, see load_torchscript.

    Returns:
        weight float32 (K, d), bias float32 (K,) or None. Rows have the lengths they were trained
        with: of a cosine classifier only their directions count.

    Raises:
        BctError: no classifier in it, or not to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise BctError(f"{path} does not exist", "check the path")
    if path.suffix.lower() == ".npy":
        return _checked(path, torch.from_numpy(_array(path)), None)
    if is_torchscript(path):
        script = load_torchscript(path, network)
        return _classifier(path, {key: v.detach() for key, v in script.state_dict().items()})
    saved = read_tensors(path)
    if torch.is_tensor(saved):
        return _checked(path, saved, None)
    return _classifier(path, unwrapped(path, saved))


def _classifier(
    path: Path, state: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    kernel = state.get("kernel")  # of OpenBCT's cosine classifier, whose fc was never trained
    if kernel is not None and kernel.dim() == 2:
        return _checked(path, kernel.t(), None)
    for name in _CLASSIFIERS:
        of_network = name == "fc" and _OF_IRESNET in state
        if f"{name}.weight" in state and not of_network:
            return _checked(path, state[f"{name}.weight"], state.get(f"{name}.bias"))
    by_dims = sorted(state.values(), key=torch.Tensor.dim)
    if [value.dim() for value in by_dims] in ([2], [1, 2]):
        return _checked(path, by_dims[-1], by_dims[0] if len(by_dims) == 2 else None)
    raise BctError(
        f"{path} holds no classifier: only softmax models keep theirs",
        "give that of a softmax model, tools/import_model.py --classifier, or use class means, "
        "tools/average_features.py",
    )


def _array(path: Path) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
    except (ValueError, EOFError, OverflowError) as error:
        raise BctError(f"{path} is damaged ({error})", "give a .npy of floats (K, d)") from None
    if array.dtype.kind != "f":
        raise BctError(f"{path} holds {array.dtype}", "give a .npy of floats (K, d)")
    return array.astype(np.float32)


def _checked(
    path: Path, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if weight.dim() == 4 and weight.shape[2:] == (1, 1):  # BT-2 writes it as a 1x1 convolution
        weight = weight.flatten(1)
    fits = weight.dim() == 2 and (bias is None or bias.shape == weight.shape[:1])
    if not fits:
        bias_shape = "" if bias is None else f" and {tuple(bias.shape)}"
        raise BctError(
            f"{path}: {tuple(weight.shape)}{bias_shape} is no classifier",
            "give one row of floats per class, and as many biases or none",
        )
    return weight.float().contiguous(), None if bias is None else bias.float()


def baked(path: str | Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BT-2's state_dict of BT² as backbones.basis.from_state takes it.

    What the file does not say comes from the .json beside it, as in BT-2's config:
    {"network": "resnet50_narrow+basis", "to_add_dim": 32, "C": 2}. norm_feature and last_nonlin
    have to be true, as in all of its configs.

    Raises BctError when it is not there, or the weights are others.
    """
    about, said = Path(path).with_suffix(".json"), said_beside(path)
    extra, scale = said.get("to_add_dim"), said.get("C")
    if type(extra) is not int or type(scale) not in (int, float):
        raise BctError(
            f"{path} does not keep its config's to_add_dim and C",
            f'write them to {about}: {{"network": "...+basis", "to_add_dim": 32, "C": 2}}',
        )
    try:
        old_branch, bias = state["fc3.weight"].flatten(1), state["fc3.bias"]
        P, Q = (_rotation(state, name) for name in ("ortholinear_p", "ortholinear_old2"))
    except (KeyError, RuntimeError) as error:
        raise BctError(
            f"{path} is no BT² checkpoint of BT-2 ({' '.join(str(error).split())})",
            "name the network it was trained with",
        ) from None
    if not 0 < extra <= len(bias):
        raise BctError(
            f"{about}: to_add_dim = {extra}, the old embeddings have {len(bias)} dimensions",
            "take the values from the config it was trained with",
        )
    body = {
        f"body.{k.removeprefix('resnet.')}": v for k, v in state.items() if k.startswith("resnet.")
    }
    # rows of fc3 below to_add_dim are cut off by the network and were never trained
    old = {"old_branch.weight": old_branch[:extra], "old_branch.bias": bias[:extra]}
    return {**body, **old, "P.weight": P, "Q.weight": Q, "C": torch.tensor(float(scale))}


def _rotation(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """W above, float32 (d, d)."""
    key = f"{name}.parametrizations.weight"
    lower = state[f"{key}.original"].double().tril()
    return (state[f"{key}.0.base"].double() @ torch.matrix_exp(lower - lower.t())).float()


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, by the names of its members; none of it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())
    except Exception:  # zipfile raises many kinds; who reads the file as weights says what is wrong
        return False


def untrusted(path: str | Path) -> BctError:
    """The error for a TorchScript archive that nobody has called one."""
    return BctError(
        f"{path} is TorchScript, a program that runs when it is loaded",
        f"if you trust where it comes from, name the network {TORCHSCRIPT}",
    )


def load_torchscript(path: str | Path, network: str | None) -> torch.jit.ScriptModule:
    """Loads a TorchScript archive, on the CPU and in eval mode.

    TorchScript is a program that loading runs, with the rights of whoever loads it. So this wants
    to be told, and hands no other file to torch.

    Args:
        network: TORCHSCRIPT, by which the caller says that the file is trusted.

    Raises:
        BctError: no such network, a damaged file, or none of TorchScript.
    """
    do = "give a file that torch.jit.save wrote, or copy it again"
    if not is_torchscript(path):
        raise BctError(f"{path} is no TorchScript archive", do)
    if network != TORCHSCRIPT:
        raise untrusted(path)
    try:
        refuse_damaged(path, do)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated, but nothing else reads it
            return torch.jit.load(path, map_location="cpu").eval()
    except BctError:
        raise
    except Exception as error:  # torch and zipfile raise many kinds on damaged files
        raise BctError(f"{path} can't be read as TorchScript ({_line(error)})", do) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:120]


class Script(nn.Module):
    """A TorchScript model in the place of a network: (B, 3, H, W) -> (B, D) float32, no gradient.

    The last of several outputs is the embedding, as BT-2 has it; (B, D, 1, 1) is flattened. It runs
    in the precision it was saved in, and stays in eval mode.

    Args:
        script: see load_torchscript.
        size: of the images it will get.
        path: its file, for messages.

    Raises:
        BctError: it can't embed images of this size.
    """

    def __init__(self, script: torch.jit.ScriptModule, size: Size, path: str | Path):
        super().__init__()
        if len(script.forward.schema.arguments) > 2:  # the first one is the script
            raise BctError(
                f"{path} takes several inputs, not images alone: it is a map of embeddings",
                "save its weights for tools/transform_gallery.py: "
                "torch.save(torch.jit.load(FILE).state_dict(), 'model.pt')",
            )
        self.script = script
        for parameter in script.parameters():  # a script has no requires_grad_ of its own
            parameter.requires_grad = False
        height, width = shape_of(size)
        try:
            self.embedding_size = self(torch.zeros(2, 3, height, width)).shape[1]
        except Exception as error:  # any that the program raises
            raise BctError(
                f"{path} gives no embeddings of images of {height}x{width} ({_line(error)})",
                "if it takes others, import it: python tools/import_model.py ... --image-size 224",
            ) from None

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            out = self.script(images.float())
        return (out if torch.is_tensor(out) else out[-1]).flatten(1).float()

    def train(self, mode: bool = True) -> "Script":
        return super().train(False)
