"""Which pixels an ONNX graph wants, found from the image input to the first convolution.

Sub, Add, Mul, Div with constants and BatchNormalization there make y = a x + b of a pixel x. If
that brings 0..255 to a network's range, or only takes a mean away, it is the normalisation, and the
graph is fed 0..255. If it changes nothing, insightface's rule holds: (x - 127.5) / 127.5 outside.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

# they move pixels, or leave them as they are, but for rounding
_TRANSPARENT = {
    *("Identity", "Cast", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("Pad", "Slice", "Gather", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
_FIRST_LAYERS = {
    *("Conv", "FusedConv", "ConvTranspose", "ConvInteger", "QLinearConv", "MatMul", "Gemm"),
    *("MatMulInteger", "QLinearMatMul", "GlobalAveragePool", "AveragePool", "MaxPool"),
    *("GlobalMaxPool", "ReduceMean"),
}
_SHAPES = {"Shape", "Size"}  # they look at no pixel
_RANGE = 32.0  # how wide a normalised image's range may be; it is 2 or 5 as a rule
_MEANS = (60.0, 200.0)  # of pixels, where only a mean is taken away


@np.errstate(all="ignore")  # what is not finite is refused
def wants_bytes(graph: Any, image: str) -> bool:
    """Whether an onnx.GraphProto is fed 0..255; otherwise (x - 127.5) / 127.5.

    Args:
        image: the name of its input.

    Raises ValueError, with what is found there, when its first nodes do not say.
    """
    slope, offset = np.broadcast_arrays(*_first_nodes(graph, image))
    kept = np.abs(slope - 1) < 1e-6
    if (kept & (np.abs(offset) < 1e-6)).all():
        return False
    width = 255 * np.abs(slope)
    if ((width > 0) & (width <= _RANGE) & (np.abs(127.5 * slope + offset) <= _RANGE)).all():
        return True
    if (kept & (_MEANS[0] <= -offset) & (-offset <= _MEANS[1])).all():
        return True
    made = dict.fromkeys(f"{a:.4g} x {b:+.4g}" for a, b in zip(slope, offset, strict=True))
    raise ValueError(f"its first nodes make {', '.join(made)} of a pixel x")


def _first_nodes(graph: Any, image: str) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of a x + b, (1,) or (3,) each, of all channels or of each."""
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    slope, offset = np.ones(1), np.zeros(1)
    for _ in range(len(graph.node) + 1):
        users = [n for n in graph.node if image in n.input and n.op_type not in _SHAPES]
        kinds = sorted({node.op_type for node in users})
        if kinds and set(kinds) <= _FIRST_LAYERS:
            return slope, offset
        if len(users) != 1:
            raise ValueError(f"its image goes into {', '.join(kinds) or 'nothing'}")
        (node,) = users
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"its image goes into a {node.domain}.{node.op_type}")
        if node.op_type in _TRANSPARENT and node.input[0] == image:
            a, b = np.ones(1), np.zeros(1)
        else:
            a, b = _affine(node, image, lambda name: _constant(name, weights, made_by))
        slope, offset, image = slope * a, offset * a + b, node.output[0]
    raise ValueError("its image goes in a circle")


def _affine(
    node: Any, image: str, value: Callable[[str], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of a node."""
    kind, names = node.op_type, list(node.input)
    if kind == "BatchNormalization" and names[0] == image:
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        weight, bias, mean, variance = map(value, names[1:5])
        a = weight / np.sqrt(variance + epsilon)
        return a, bias - a * mean
    if kind not in ("Sub", "Add", "Mul", "Div") or names.count(image) != 1:
        raise ValueError(f"its image goes into a {kind}")
    first = names[0] == image
    c = value(names[1] if first else names[0])
    if kind == "Mul":
        return c, np.zeros(1)
    if kind == "Div" and first:
        return 1 / c, np.zeros(1)
    if kind == "Add":
        return np.ones(1), c
    if kind == "Sub":
        return (np.ones(1), -c) if first else (-np.ones(1), c)
    raise ValueError("its image is what something is divided by")


def _constant(name: str, weights: dict[str, Any], made_by: dict[str, Any]) -> np.ndarray:
    """float64 (1,) or (3,), a constant's value for all channels or for each; means over pixels.
    ValueError for what is none."""
    from onnx import numpy_helper

    for _ in range(16):  # through nodes that do not change it
        if name in weights:
            return _array(weights[name], numpy_helper)
        node = made_by.get(name)
        if node is None:
            break
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    return _array(attribute.t, numpy_helper)
                if attribute.name in ("value_float", "value_int"):
                    return np.float64([attribute.f or attribute.i])
                if attribute.name in ("value_floats", "value_ints"):
                    return _per_channel(np.float64(list(attribute.floats) or list(attribute.ints)))
        if node.op_type not in ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape"):
            break
        name = node.input[0]
    raise ValueError("its image meets what is no constant")


def _array(tensor: Any, numpy_helper: Any) -> np.ndarray:
    if tensor.data_location == tensor.EXTERNAL:
        raise ValueError("its image meets a constant in another file")
    return _per_channel(np.float64(numpy_helper.to_array(tensor)))


def _per_channel(array: np.ndarray) -> np.ndarray:
    if not array.size:
        raise ValueError("its image meets an empty constant")
    if array.size not in (1, 3):
        if array.ndim >= 3 and array.shape[-3] == 3:
            array = array.reshape(-1, 3, array.shape[-2] * array.shape[-1]).mean(axis=(0, 2))
        elif array.shape[-1] == 3:  # channels last
            array = array.reshape(-1, 3).mean(axis=0)
        else:
            array = array.mean()
    return array.reshape(-1)
