"""Loading a trained network: our model.pt, insightface's and the MixBCT reference's files, ONNX."""

from pathlib import Path

import torch
from torch import nn

from backbones import get_model
from backbones.inference import fold_batch_norm
from bct.errors import BctError
from bct.files import read_json
from bct.onnx_model import load_onnx
from bct.tensors import read_tensors

_WRAPPERS = ("state_dict_backbone", "state_dict", "model", "backbone")  # keys of whole checkpoints
_PREFIXES = ("module.", "backbone.")
_HEADS = ("cls_fc.", "BCT_FC.", "NormFace.", "discriminator.", "eboundary.")  # not the network's


def load_backbone(
    weights: str | Path,
    network: str | None = None,
    amp_dtype: torch.dtype | None = None,
    fold: bool = False,
) -> nn.Module:
    """Builds a network and loads its weights.

    Args:
        weights: a state_dict, or a checkpoint that holds one; old classifiers in it are ignored.
            Or an .onnx file, which is network and weights in one.
        network: a name of backbones.NETWORKS; may be left out when the file has a model.json of
            ours beside it. The embedding size is read from the weights. For an .onnx it can be
            left out; it is refused if the file names another one, and without effect otherwise.
        amp_dtype: see get_model. An .onnx runs in the precision it was exported in.
        fold: make it ready to infer and nothing else, see backbones.inference. Without effect on
            an .onnx, which onnxruntime folds, and in mixed precision, where folded weights would
            round in another way than those the network was trained with.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        BctError: no such file, not a state_dict, or weights of another network; see load_onnx.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise BctError(
            f"weights {weights} do not exist", "check the path, or train the model first"
        )
    if weights.suffix.lower() == ".onnx":
        model = load_onnx(weights)
        if network and model.network not in (None, network):
            raise BctError(
                f"{weights} is network {model.network}, not {network}",
                "check the path, or leave the network out",
            )
        return model
    network = network_of(weights, network)
    state = _state_dict(weights)
    size = _embedding_size(weights, state)
    model = get_model(network, size, amp_dtype)
    own = model.state_dict()
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    state = {**{k: v for k, v in counters.items() if k not in state}, **state}
    differing = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra or differing:
        kinds = (("missing", missing), ("unexpected", extra), ("of another shape", differing))
        found = "; ".join(f"{len(k)} {name}, e.g. {k[0]}" for name, k in kinds if k)
        raise BctError(
            f"{weights} does not fit network {network} ({found})",
            "name the network it was trained with" + _guess(weights, network),
        )
    model.load_state_dict(state)
    model.eval()
    return fold_batch_norm(model) if fold and amp_dtype is None else model


def network_of(weights: str | Path, network: str | None = None) -> str:
    """`network`, or what the model.json of ours beside the weights says. BctError if none does."""
    if network is not None:
        return network
    sidecar = Path(weights).with_suffix(".json")
    if not sidecar.is_file():
        raise BctError(
            f"{weights} does not say which network it is", "name the network, e.g. -net r50"
        )
    return _named(sidecar)


def _named(sidecar: Path) -> str:
    """The network that a model.json of ours names."""
    said = read_json(sidecar)
    if not isinstance(said, dict) or not isinstance(said.get("network"), str):
        raise BctError(f"{sidecar} names no network", "name the network, e.g. -net r50")
    return said["network"]


def _state_dict(weights: Path) -> dict[str, torch.Tensor]:
    saved = read_tensors(weights)
    for key in _WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    tensors = isinstance(saved, dict) and saved and all(map(torch.is_tensor, saved.values()))
    if not tensors:
        raise BctError(f"{weights} holds no state_dict", "give the network's own weights, model.pt")
    state = {}
    for key, value in saved.items():
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        if not key.startswith(_HEADS):
            state[key] = value
    return state


def _embedding_size(weights: Path, state: dict[str, torch.Tensor]) -> int:
    """Every backbone ends in a batch norm over the embedding."""
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    if not means:
        raise BctError(f"{weights} is no backbone of ours (no batch norm)", "check the path")
    return len(means[-1])


def _guess(weights: Path, network: str) -> str:
    sidecar = weights.with_suffix(".json")
    if sidecar.is_file() and (name := _named(sidecar)) != network:
        return f": {name}, says {sidecar.name}"
    return ""
