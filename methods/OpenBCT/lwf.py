"""Learning without forgetting: the old classifier says the same of new and old embeddings.

    corrected   -T^2 mean_i softmax(z(o_i) / T) . log softmax(z(c_i) / T)
    published   the same at T = 1 with n(o_i) = o_i / |o_i| in place of o_i

z are the logits of influence.py, c_i the new embedding brought to the old width, o_i the old one of
the same image. T^2 keeps the gradient's size when T changes. In the published form the teacher's
embedding has length 1, the student's about 20, so that the teacher is far less sure of everything.

Papers: Li and Hoiem, Learning without Forgetting, ECCV 2016; a baseline of openBCT.
"""

import torch
import torch.nn.functional as F


def lwf(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The loss of logits (B, K), new, and (B, K), old, which are constant."""
    target = (teacher / temperature).softmax(1)
    return temperature**2 * F.cross_entropy(student / temperature, target)
