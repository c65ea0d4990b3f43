"""A method's influence and gradients, held against functions in float64."""

import math

import numpy as np
import pytest
import torch

from bct.data.loader import Batch
from support.heads import head_with


def numeric_gradient(function, x, step=1e-5):
    """Central differences of a float64 function of an array."""
    grad = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        grad[at] = (function(up) - function(down)) / (2 * step)
    return grad


def mean_cross_entropy(rows, labels):
    """Of logits, plainly."""
    each = [math.log(sum(map(math.exp, row))) - row[y] for row, y in zip(rows, labels, strict=True)]
    return sum(each) / len(each)


def influence_of(method, f, y, epoch=10.0):
    """The influence and its gradient by the embeddings."""
    f32 = torch.as_tensor(f, dtype=torch.float32).clone().requires_grad_()
    batch = Batch(None, torch.as_tensor(y), None, {}, epoch)
    loss = method(f32, batch, head_with(torch.eye(f.shape[1])), None)["influence"]
    loss.backward()
    return loss.item(), f32.grad.numpy()


def assert_influence(method, function, f, y):
    """The influence and its gradient are those of a float64 function of the embeddings."""
    loss, grad = influence_of(method, f, y)
    assert loss == pytest.approx(function(f), rel=1e-4, abs=1e-6)
    want = numeric_gradient(function, f)
    np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
