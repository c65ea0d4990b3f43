"""Tiny ONNX files, made by hand."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper


def graph(path, *, before=(), batch="N", shape=(3, 112, 112), output=None, after=(), more=(), **kw):
    """A tiny file: `before` nodes from "data" to "x", the mean over each channel of x, `after`
    nodes from "mean" to "out". Without `before` and `after` the output is the mean, (B, 3)."""
    kind = kw.get("kind", TensorProto.FLOAT)
    kind_out = kw.get("kind_out", kind)
    last = "out" if after else "mean"
    nodes = [
        *(before or [helper.make_node("Identity", ["data"], ["x"])]),
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        *after,
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(value), name)
        for name, value in kw.get("constants", {}).items()
    ]
    built = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("data", kind, [batch, *shape])],
        [helper.make_tensor_value_info(n, kind_out, output) for n in (last, *more)],
        constants,
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, kw.get("metadata", {}))
    onnx.save(model, path)
    return path


def pixels(batch: int) -> np.ndarray:
    """uint8 (B, 112, 112, 3) whose colours have different means."""
    noise = np.random.default_rng(batch).integers(0, 90, (batch, 112, 112, 3))
    return (noise + np.array([0, 60, 160])).astype(np.uint8)


def normalised(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32))


def node(kind, *names, **attributes):
    return helper.make_node(kind, names[:-1], names[-1:], **attributes)


def own_normalisation(second: str) -> dict:
    """Nodes that subtract 127.5 and multiply with or divide by 100."""
    factor = np.float32(100 if second == "Div" else 0.01)
    nodes = [
        helper.make_node("Sub", ["data", "shift"], ["centred"]),
        helper.make_node(second, ["centred", "factor"], ["x"]),
    ]
    return {"before": nodes, "constants": {"shift": np.float32(127.5), "factor": factor}}
