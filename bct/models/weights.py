"""Loading a trained network: our model.pt, insightface's files and those of MixBCT, OpenBCT,
AdvBCT, OpenCompatible, BT-2 and FCT, ONNX, TorchScript."""

from pathlib import Path

import torch
from torch import nn

from backbones import get_model, own_state
from backbones.inference import fold_batch_norm
from bct.data.images import SIZE, Size
from bct.errors import BctError
from bct.files import read_json
from bct.models.about import view_of_model
from bct.models.onnx_model import load_onnx
from bct.models.reference_checkpoints import (
    TORCHSCRIPT,
    Script,
    baked,
    is_torchscript,
    load_torchscript,
    said_in,
    untrusted,
)
from bct.safe.tensor_files import shown
from bct.safe.tensors import read_state

CLASSIFIERS = ("cls_fc.", "projection_cls.", "fc_classifier.", "fc_classify.")
HEADS = (*CLASSIFIERS, "BCT_FC.", "NormFace.", "discriminator.", "eboundary.")  # not the network's
_BASIS = "+basis"
_PROJECTED = ("timm:", "gem_resnet")  # networks whose embedding is a layer behind the trunk


def load_backbone(
    weights: str | Path,
    network: str | None = None,
    amp_dtype: torch.dtype | None = None,
    fold: bool = False,
    size: Size | None = None,
    pixels: str | None = None,
) -> nn.Module:
    """Builds a network and loads its weights.

    Args:
        weights: a state_dict, or a checkpoint that holds one; old classifiers in it are ignored.
            Or an .onnx file, or a TorchScript archive, which are network and weights in one.
        network: a name that get_model knows, the same with "+basis" for BT²'s, "fct" for FCT's
            transformation; may be left out when the file has a model.json of ours beside it, or
            names its network itself, as OpenBCT's do. The embedding size is read from the weights.
            For an .onnx it can be left out; it is refused if the file names another one, and
            without effect otherwise. TorchScript is a program that loading runs, and must be named:
            "torchscript".
        amp_dtype: see get_model. An .onnx and TorchScript run in the precision they were saved in.
        fold: make it ready to infer and nothing else, see backbones.inference. Without effect on
            an .onnx, which onnxruntime folds, on TorchScript, and in mixed precision, where folded
            weights would round in another way than those the network was trained with.
        size, pixels: of the images an .onnx will get, see load_onnx; size also of TorchScript's,
            default: as its model.json says. Without effect on others.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        BctError: no such file, not a state_dict, or weights of another network; see load_onnx and
            bct.models.reference_checkpoints.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise BctError(
            f"weights {weights} do not exist", "check the path, or train the model first"
        )
    if weights.suffix.lower() == ".onnx":
        model = load_onnx(weights, size or SIZE, pixels)
        if network and model.network not in (None, network):
            raise BctError(
                f"{weights} is network {model.network}, not {network}",
                "check the path, or leave the network out",
            )
        return model
    network = network_of(weights, network)
    if network == TORCHSCRIPT or is_torchscript(weights):
        script = load_torchscript(weights, network)
        return Script(script, size or view_of_model(weights).size, weights).eval()
    state = {k: v for k, v in read_state(weights).items() if not k.startswith(HEADS)}
    if network == "fct":
        from backbones import fct

        model = fct.from_state(state)
    elif network.endswith(_BASIS):
        model = _basis(weights, network.removesuffix(_BASIS), state, amp_dtype)
    else:
        model = _plain(weights, network, state, amp_dtype)
    model.eval()
    return fold_batch_norm(model) if fold and amp_dtype is None else model


def _plain(
    weights: Path, network: str, state: dict[str, torch.Tensor], amp_dtype: torch.dtype | None
) -> nn.Module:
    state, size = own_state(network, state)
    if size is None and network.startswith(_PROJECTED):
        raise BctError(
            f"{weights} holds no network {network} with its embedding",
            "name the network it was trained with; a trunk alone, such as ImageNet's weights, is "
            "for init_from=",
        )
    if size is None:
        raise BctError(
            f"{weights} is no backbone of ours (no batch norm)",
            "give the network's own weights; a classifier is for tools/import_model.py "
            "--classifier",
        )
    with torch.device("meta"):  # a few bytes can name any network: no memory before they fit
        own = get_model(network, size).state_dict()
    counters = [k for k in own if k.endswith("num_batches_tracked")]
    state = {**{k: torch.tensor(0) for k in counters if k not in state}, **state}
    differing = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra or differing:
        kinds = (("missing", missing), ("unexpected", extra), ("of another shape", differing))
        found = "; ".join(f"{len(k)} {name}, e.g. {shown(k[0], 60)}" for name, k in kinds if k)
        raise BctError(
            f"{weights} does not fit network {network} ({found})",
            "name the network it was trained with" + _guess(weights, network),
        )
    model = get_model(network, size, amp_dtype)
    model.load_state_dict(state)
    return model


def _basis(
    weights: Path, body: str, state: dict[str, torch.Tensor], amp_dtype: torch.dtype | None
) -> nn.Module:
    from backbones import basis

    if "ortholinear_p.parametrizations.weight.original" in state:  # of BT-2
        state = baked(weights, state)
        inner = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
        inner, _ = own_state(body, inner)
        state = {k: v for k, v in state.items() if not k.startswith("body.")}
        state |= {f"body.{k}": v for k, v in inner.items()}
    return basis.from_state(body, state, amp_dtype)


def network_of(weights: str | Path, network: str | None = None) -> str:
    """`network`, or what the model.json of ours beside the weights says, or they themselves.

    Raises BctError if none does.
    """
    if network is not None:
        return network
    sidecar = Path(weights).with_suffix(".json")
    if sidecar.is_file() and sidecar != Path(weights):
        return _named(sidecar)
    if is_torchscript(weights):
        raise untrusted(weights)
    said = said_in(weights).network
    if said is None:
        raise BctError(
            f"{weights} does not say which network it is",
            "name the network, e.g. -net r50, of an old model -old_net; a model of ours "
            "needs its .json beside it: give the run's folder",
        )
    return said


def _named(sidecar: Path) -> str:
    """The network that a model.json of ours names."""
    said = read_json(sidecar)
    if not isinstance(said, dict) or not isinstance(said.get("network"), str):
        raise BctError(f"{sidecar} names no network", "name the network, e.g. -net r50")
    return said["network"]


def _guess(weights: Path, network: str) -> str:
    sidecar = weights.with_suffix(".json")
    if sidecar.is_file() and (name := _named(sidecar)) != network:
        return f": {name}, says {sidecar.name}"
    return ""
