"""freeze: parts of a network that a training leaves as they are."""

from collections.abc import Iterator

from torch import nn

from bct.errors import BctError


def freeze(backbone: nn.Module, what: list[str] | float | None) -> None:
    """Takes parameters out of the training: they get no gradient and no weight decay, and batch
    norms among them keep their statistics.

    Args:
        what: names of modules or parameters, e.g. ["conv1", "layer1"], a body's also without
            "body.", of a timm trunk without "convnet."; or a share of the parameters, from the
            input on: all layers that lie within it.

    Raises:
        BctError: a name that the network does not have, or a share below its first layer.
    """
    if not what:
        return
    chosen = _named(backbone, what) if isinstance(what, list) else _within(backbone, what)
    for name, parameter in backbone.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    for prefix, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.frozen = f"{prefix}.running_mean" in chosen


def train_mode(backbone: nn.Module, learning: bool = True) -> None:
    """backbone.train(learning), of which frozen batch norms learn nothing."""
    backbone.train(learning)
    for module in backbone.modules():
        if getattr(module, "frozen", False):
            module.eval()


def _named(backbone: nn.Module, prefixes: list[str]) -> set[str]:
    """Names of the parameters and buffers that lie in one of these."""
    names = list(backbone.state_dict())
    chosen: set[str] = set()
    for prefix in prefixes:
        found = {
            name
            for name in names
            if any(f"{known}.".startswith(f"{prefix}.") for known in _shorter(name))
        }
        if not found:
            first = dict.fromkeys([*_shorter(name)][-1].partition(".")[0] for name in names)
            raise BctError(
                f"freeze: the network has nothing called {prefix!r}",
                f"it has {', '.join(first)}"[:300],
            )
        chosen |= found
    return chosen


def _shorter(name: str) -> Iterator[str]:
    """A name, and without the bodies it lies in."""
    yield name
    while name.startswith(("body.", "convnet.")):
        name = name.partition(".")[2]
        yield name


def _within(backbone: nn.Module, share: float) -> set[str]:
    """Names of the parameters and buffers of the first layers that are no more than this share."""
    most = share * sum(p.numel() for p in backbone.parameters())
    chosen: set[str] = set()
    count = 0
    for prefix, module in backbone.named_modules():
        own = [p.numel() for p in module.parameters(recurse=False)]
        if count + sum(own) > most:
            break
        count += sum(own)
        here = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        chosen |= {f"{prefix}.{name}".removeprefix(".") for name, _ in here}
    if not count:
        raise BctError(
            f"freeze = {share:g} is less than the network's first layer", "give a larger share"
        )
    return chosen
