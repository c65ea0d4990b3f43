"""Who is who among the models of an evaluation, and which of them meet in its tests."""

import argparse
import itertools
from typing import NamedTuple

from bct.command import networks_for
from bct.files import model_name

Test = tuple[str, str]  # labels of the queries' and of the gallery's model


class Roles(NamedTuple):
    """The models' labels by role; what a label says decides nothing.

    new: the new models. old: the old model. mapped: a gallery that stands in place of the old
    model's. alone: the new network trained without compatibility. chain: whether each version
    meets every one's gallery.
    """

    new: list[str]
    old: str | None = None
    mapped: str | None = None
    alone: str | None = None
    chain: bool = False

    @property
    def versions(self) -> list[str]:
        """All versions, the oldest first."""
        return [*([] if self.old is None else [self.old]), *self.new]

    @property
    def stale(self) -> str | None:
        """Whose gallery new queries meet before a backfill."""
        return self.mapped or self.old

    def compared(self, label: str) -> list[Test]:
        """The tests that tell whether a new model is compatible: old, cross, self, alone."""
        tests = [(self.old, self.old), (label, self.stale), (label, label)]
        return tests + [(self.alone, self.alone)] * (self.alone is not None)

    def tests(self) -> list[Test]:
        """All tests, in the order of the tables."""
        if self.chain:
            return list(itertools.product(self.versions, repeat=2))
        alone = [(self.alone, self.alone)] * (self.alone is not None)
        if self.old is None:
            return [*((label, label) for label in self.new), *alone]
        each = [test for label in self.new for test in self.compared(label)[:3]]
        # the last one is no part of the verdict: it only shows that alone's space is another one
        return [*dict.fromkeys(each), *alone, *((label, self.old) for label, _ in alone)]


def test_name(test: Test) -> str:
    """As tables and JSON have it."""
    return " / ".join(test)


def roles_and_files(
    args: argparse.Namespace,
) -> tuple[Roles, list[tuple[str, str, str | None]]]:
    """Who is who, and (label, file, network) of each model, in the tables' order.

    Args:
        args: what bct.command.model_parser has read.

    Raises BctError for another number of networks than of models.
    """
    several = len(args.model_file) > 1
    new = [model_name(file) if several else "new" for file in args.model_file]
    files = [
        ("old", args.model_file_old, args.network_old),
        ("transformed", args.old_gallery, None),
        *zip(new, args.model_file, networks_for(args.network, args.model_file), strict=True),
        ("alone", args.model_file_alone, args.network_alone),
    ]
    old, mapped, alone = (label if file else None for label, file, _ in (*files[:2], files[-1]))
    roles = Roles(new, old, mapped, alone, chain=bool(args.matrix))
    return roles, [file for file in files if file[1]]
