"""SGD whose cost follows the rows that have a gradient: for class centres of which few are sampled.

Dense SGD moves every row in every step. A row without a gradient follows, with momentum mu and
weight decay lambda, a linear map of its two numbers per element, weight and momentum:

    m' = mu m + lambda w,    w' = w - lr m',    that is    (w', m') = M (w, m),  M 2 x 2

k steps without a gradient are a product of k such matrices. So a row is left alone until it is
needed, and is then brought up to date by one matrix, multiplied in float64. That is dense SGD up to
rounding, of which one multiplication leaves less than k steps.
"""

from collections.abc import Iterable, Iterator

import torch

_FLUSH = 1000  # steps after which all rows are brought up to date: bounds the list of matrices
_PIECE = 2**25  # elements worked on at once: bounds what is copied, to some times 128 MiB


class RowSGD(torch.optim.SGD):
    """torch.optim.SGD that also takes sparse gradients, with momentum and weight decay.

    Such a parameter's rows are of different age. Read them through `current`; what is stored, also
    in a state_dict, is only right together with the optimiser's state:

        momentum_buffer: (n, D), as old as the row.
        rates: learning rates of the steps since all rows were last brought up to date. That happens
            after every 1,000 steps and before a step with a dense gradient, at no other time:
            reading or saving the parameter does not change how later steps round.
        applied: (n,), how many of these steps are in the row. In the parameter's type, to which
            load_state_dict converts whatever it loads; the numbers are small enough to be exact.

    momentum and weight_decay have to stay as they are; the learning rate may change.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        *,
        momentum: float,
        weight_decay: float,
        fused: bool | None = None,
    ):
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay, fused=fused)

    def current(self, parameter: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The parameter as dense SGD would have it by now, with a gradient.

        Args:
            parameter: (n, D).
            rows: (k,) ascending, without repetitions; their gradient is sparse. None: all rows,
                whose gradient is dense.

        Returns:
            (k, D) or (n, D); nothing of what is stored changes.
        """
        return _Current.apply(parameter, rows, self)

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters that have a gradient."""
        sparse = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    sparse[parameter], parameter.grad = parameter.grad, None
                elif self.state[parameter].get("rates"):
                    self._flush(parameter, group)
        super().step()
        for parameter, grad in sparse.items():
            parameter.grad = grad

    def _step_rows(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "rates" not in state:
            state["rates"], state["applied"] = [], parameter.new_zeros(len(parameter))
            # zeros are what torch's first step, momentum = gradient, amounts to
            state.setdefault("momentum_buffer", torch.zeros_like(parameter))
        grad = parameter.grad.coalesce()  # adds up the micro-batches, row by row
        state["rates"].append(float(group["lr"]))
        self._advance(parameter, group, grad.indices()[0], grad.values())
        if len(state["rates"]) == _FLUSH:
            self._flush(parameter, group)

    def _flush(self, parameter: torch.Tensor, group: dict) -> None:
        self._advance(parameter, group, torch.arange(len(parameter), device=parameter.device))
        state = self.state[parameter]
        state["rates"] = []
        state["applied"].zero_()

    def _advance(
        self,
        parameter: torch.Tensor,
        group: dict,
        rows: torch.Tensor,
        grad: torch.Tensor | None = None,
    ) -> None:
        """Applies to rows (k,) all steps they lack, the last of them with a gradient (k, D)."""
        momentum, applied = (self.state[parameter][key] for key in ("momentum_buffer", "applied"))
        for part, maps, here in self._pieces(parameter, group, rows):
            ww, wm, mw, mm = maps
            w, m = parameter.index_select(0, part), momentum.index_select(0, part)
            new_w, new_m = (w * ww).addcmul_(m, wm), m.mul_(mm).addcmul_(w, mw)
            if grad is not None:
                new_w.sub_(grad[here], alpha=float(group["lr"]))
                new_m.add_(grad[here])
            parameter.index_copy_(0, part, new_w)
            momentum.index_copy_(0, part, new_m)
        applied[rows] = float(len(self.state[parameter]["rates"]))

    def _read(self, parameter: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """`current` without a gradient."""
        state = self.state.get(parameter, {})
        if not state.get("rates"):
            return parameter.clone() if rows is None else parameter.index_select(0, rows)
        group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
        rows = torch.arange(len(parameter), device=parameter.device) if rows is None else rows
        out = parameter.new_empty(len(rows), *parameter.shape[1:])
        for part, (ww, wm, _, _), here in self._pieces(parameter, group, rows):
            w, m = parameter.index_select(0, part), state["momentum_buffer"].index_select(0, part)
            torch.mul(w, ww, out=out[here]).addcmul_(m, wm)
        return out

    def _pieces(
        self, parameter: torch.Tensor, group: dict, rows: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, slice]]:
        """Runs of rows: (rows, the four numbers of their matrices,
        each (k, 1), where they are among all)."""
        state = self.state[parameter]
        table = products(state["rates"], group["momentum"], group["weight_decay"])
        table = table.to(parameter)[:, :, None]  # (4, steps + 1, 1)
        size = max(_PIECE // parameter.shape[1], 1)
        for start in range(0, len(rows), size):
            here = slice(start, start + size)
            part = rows[here]
            yield part, table[:, state["applied"][part].long()], here


class _Current(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter, rows, optimizer):
        ctx.rows, ctx.shape = rows, parameter.shape
        return optimizer._read(parameter, rows)

    @staticmethod
    def backward(ctx, grad):
        if ctx.rows is not None:
            rows = ctx.rows[None]
            grad = torch.sparse_coo_tensor(
                rows, grad, ctx.shape, is_coalesced=True, check_invariants=False
            )
        return grad, None, None


def products(rates: list[float], momentum: float, weight_decay: float) -> torch.Tensor:
    """float64 (4, K + 1): column k has, row by row, the 2 x 2 matrix of steps k, k + 1, ..., K - 1
    on (w, m), the last column the identity."""
    a, b, c, d = 1.0, 0.0, 0.0, 1.0
    columns = [(a, b, c, d)]
    for lr in reversed(rates):  # P <- P M,  M = ((1 - lr decay, -lr momentum), (decay, momentum))
        keep, pull = 1 - lr * weight_decay, -lr * momentum
        a, b = a * keep + b * weight_decay, a * pull + b * momentum
        c, d = c * keep + d * weight_decay, c * pull + d * momentum
        columns.append((a, b, c, d))
    return torch.tensor(columns[::-1], dtype=torch.float64).t()
