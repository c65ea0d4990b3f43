"""Writes a trained network as an ONNX file, and checks it against torch.

    python tools/export_onnx.py work_dirs/x/model.pt                      # work_dirs/x/model.onnx
    python tools/export_onnx.py backbone.pth -net r50 -o r50.onnx --opset 18

Input "data", float32 (batch, 3, H, W), RGB, normalised and of the size that the model.json beside
the weights says; without one as aligned faces are, (batch, 3, 112, 112), (pixel - 127.5) / 127.5.
Output "embedding", float32 (batch, D), not normalised; any batch. The metadata has the
preprocessing, the network, the embedding size and the hash of the weights. The evaluators take the
file in the place of model.pt.
Weights of more than 1.5 GiB (r2060, vit_h) are in a second file, model.onnx.data, since ONNX holds
at most 2 GiB in one. The metadata has its hash, so that no other file can take its place.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from bct.command import Parser, file_path, positive, run_cli, some_text
from bct.data.views import View
from bct.errors import BctError
from bct.files import sha256_file
from bct.models.about import view_of_model
from bct.models.model import refuse_unsaid_view
from bct.models.onnx_model import (
    NETWORK,
    PREPROCESSING,
    WEIGHTS_FILE,
    load_onnx,
    preprocessing,
    require,
)
from bct.models.weights import load_backbone, network_of
from bct.streams import generator

LIMIT = 1e-4  # of check: the networks have 1e-6 to 1e-5, a wrong graph about 1
_LOWEST_OPSET = 18  # torch's exporter has implementations from here on
_LARGEST = 1536 << 20  # bytes of weights in one file


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("weights", type=file_path, help="model.pt, or insightface's backbone.pth")
    add(
        "-net",
        "--network",
        type=some_text,
        help="its network, e.g. r50; model.json beside it says so too",
    )
    add("-o", "--output", type=file_path, help="default: the weights' name with .onnx")
    add("--opset", type=positive, help=f"ONNX operator set, from {_LOWEST_OPSET}; default: torch's")
    add("--overwrite", action="store_true", help="replace the output")
    args = parser.parse_args()
    output = args.output or args.weights.with_suffix(".onnx")
    if args.weights.suffix.lower() == ".onnx":
        raise BctError(f"{args.weights} is an ONNX file", "give the weights it was made from")
    if output.exists() and not args.overwrite:
        raise BctError(f"{output} exists already", "choose another -o, or pass --overwrite")
    model = load_backbone(args.weights, args.network)
    refuse_unsaid_view(args.weights, args.network, None)
    network, view = network_of(args.weights, args.network), view_of_model(args.weights)
    metadata = {
        NETWORK: network,
        "bct.embedding_size": str(model.embedding_size),
        "bct.weights_sha256": sha256_file(args.weights),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    # two files can't be renamed at once, but a graph with foreign weights is refused
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        opset = export(model, Path(folder) / output.name, metadata, args.opset, view=view)
        worst = check(model, Path(folder) / output.name, view)
        files = sorted(Path(folder).iterdir(), reverse=True)  # the weights before the graph
        size = sum(file.stat().st_size for file in files) / 1e6
        for file in files:
            os.replace(file, output.parent / file.name)
    print(f"{output}: {network}, {size:.1f} MB, opset {opset}, differs from torch by {worst:.1e}")


def export(
    model: nn.Module,
    path: Path,
    metadata: dict[str, str],
    opset: int | None = None,
    largest: int = _LARGEST,
    view: View = View(),  # noqa: B008 - a constant
) -> int:
    """Writes a backbone to an ONNX file, with the preprocessing in its metadata.

    Args:
        model: fp32, on the CPU; it is put in eval mode.
        metadata: further keys.
        opset: ONNX operator set, None for torch's choice.
        largest: more bytes of weights than this go to a second file, <path>.data.
        view: how it sees an image.

    Returns:
        The operator set of the file.

    Raises:
        BctError: an operator set that torch can't write.
    """
    ir = require("onnxscript").ir
    total = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if opset and opset < _LOWEST_OPSET:
        raise BctError(
            f"--opset {opset} is below {_LOWEST_OPSET}, the lowest torch writes", "leave it out"
        )
    # two images, as torch.export takes a size of 1 for a constant; and without gradient, or the
    # graph would be that of the PReLU for training
    with torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 3, *view.shape),),
            dynamo=True,
            input_names=["data"],
            output_names=["embedding"],
            dynamic_shapes=({0: "batch"},),
            opset_version=opset,
            verbose=False,
        )
    written = program.model.opset_imports[""]
    if written != (opset or written):  # torch only logs that it could not
        raise BctError(f"torch wrote opset {written}, not {opset}", "choose another --opset")
    ir.passes.common.ClearMetadataAndDocStringPass()(program.model)  # stack traces of this machine
    program.model.metadata_props.update(
        {PREPROCESSING: json.dumps(preprocessing(view)), **metadata}
    )
    program.save(path, external_data=total > largest)
    if total > largest:
        onnx = require("onnx")
        graph = onnx.load(path, load_external_data=False)
        weights = path.with_name(f"{path.name}.data")
        graph.metadata_props.add(key=WEIGHTS_FILE, value=sha256_file(weights))
        path.write_bytes(graph.SerializeToString())
    return written


@torch.inference_mode()
def check(model: nn.Module, path: Path, view: View = View()) -> float:  # noqa: B008
    """Compares the file with the network on 1 and on 7 random images.

    Returns:
        The largest difference, divided by the largest value of torch's output.

    Raises:
        BctError: it is above LIMIT.
    """
    loaded, differences = load_onnx(path, view.size, view.pixels), []
    draw = generator("cpu", 0, "export_onnx")
    for count in (1, 7):
        images = 2 * torch.rand(count, 3, *view.shape, generator=draw) - 1
        want = model(images)
        differences.append((loaded(images) - want).abs().max() / want.abs().max())
    worst = torch.stack(differences).max().item()
    if not worst <= LIMIT:  # NaN too
        raise BctError(
            f"the ONNX file differs from torch by {worst:.1e} of the output, more than {LIMIT:.0e}",
            "try another --opset; if the network gives NaN, train it again",
        )
    return worst


if __name__ == "__main__":
    run_cli(main)
