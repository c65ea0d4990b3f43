"""Which of our modules imports which, read from the source, and which rooms may import which.

Imports within functions count, too. As a script it prints the rooms and the arrows between them.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PARTS = ("bct", "backbones", "tools", "eval", "methods")

FIRST = "errors threads streams"
GROUND = (
    "amp command config conventions distributed files folders keys log markdown outputs rows "
    "scenarios signals wandb_run"
)
AUTHORS = "train validation val_data method old_model old_judge"  # what an author of a method sees

# A room is a folder or one of the three groups above; names within bct go without "bct.".
# Every room may import itself. Behind it: the rooms and single modules that it may import, too.
ALLOWED = {
    FIRST: "",
    GROUND: FIRST,
    "metrics": f"{FIRST} rows distributed",
    "backbones": "errors",
    "safe": f"{FIRST} {GROUND}",
    "data": f"{FIRST} {GROUND} safe",
    "stored": f"{FIRST} {GROUND} safe",
    "adapters": f"{FIRST} {GROUND} safe stored backbones",
    "models": f"{FIRST} {GROUND} safe data stored adapters backbones",
    "training": f"{FIRST} {GROUND} safe data models backbones",
    "search": f"{FIRST} {GROUND} stored metrics models adapters",
    "protocols": f"{FIRST} {GROUND} safe data stored models metrics search adapters",
    "report": f"{FIRST} {GROUND} safe data stored models metrics search adapters protocols",
    AUTHORS: f"{FIRST} {GROUND} safe data stored models metrics adapters training backbones "
    "protocols.pairs",
}
BCT = " ".join(ALLOWED) + " bct"
ALLOWED |= {
    "bct": BCT,  # the public names
    "api": BCT,  # what they are
    "tools.ijbc": BCT,
    "tools": f"{BCT} tools.ijbc",
    "eval": f"{BCT} tools.ijbc",
    "methods": BCT,
    "train_old": BCT,
}


def modules() -> dict[str, Path]:
    """The files of all our modules by their dotted names, the packages' __init__ included."""
    files = [*REPOSITORY.glob("*.py")]
    files += [file for part in PARTS for file in (REPOSITORY / part).rglob("*.py")]
    found = {}
    for file in files:
        names = file.relative_to(REPOSITORY).with_suffix("").parts
        if "configs" not in names:  # these are data
            found[".".join(names[:-1] if names[-1] == "__init__" else names)] = file
    return found


def imported(file: Path, known: Collection[str]) -> set[str]:
    """Those of the known modules that a file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from a import b` reads b, a module, or a itself
            found |= {name if name in known else node.module for name in parts}
            assert not node.level, f"{file}: write imports in full"
    return found & set(known)


def graph() -> dict[str, set[str]]:
    """For each module the modules of ours that it imports."""
    known = modules()
    return {name: imported(file, known) - {name} for name, file in known.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, or an empty list where there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def room(module: str) -> str:
    """The key of ALLOWED that a module belongs to."""
    name = module.removeprefix("bct.")
    if name.startswith("tools.ijbc"):
        return "tools.ijbc"
    first = name.partition(".")[0]
    return next((key for key in (FIRST, GROUND, AUTHORS) if first in key.split()), first)


def may_import(module: str, other: str) -> bool:
    """Whether the table and the rules beside it let one module import another."""
    if module.startswith("methods.") and other.startswith("methods."):
        return module.split(".")[1] == other.split(".")[1]  # a method imports none but itself
    mine, its = room(module), room(other)
    if mine == its:
        return mine != FIRST
    words = ALLOWED.get(mine, "").split()
    return other.removeprefix("bct.") in words or set(its.split()) <= set(words)


def climbs(arrows: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The imports that the table does not allow."""
    return {(a, b) for a, others in arrows.items() for b in others if not may_import(a, b)}


def main() -> int:
    arrows, between = graph(), defaultdict(set)
    for a, others in arrows.items():
        between[label(a)] |= {label(b) for b in others} - {label(a)}
    for own, others in between.items():
        print(f"{own:<12} -> {', '.join(sorted(others))}")
    found, upward = circle(arrows), sorted(climbs(arrows))
    for a, b in upward:
        print(f"not allowed: {a} -> {b}")
    print(
        f"{len(arrows)} modules, {sum(map(len, arrows.values()))} imports, "
        f"circles: {' -> '.join(found) or 0}, climbs: {len(upward)}"
    )
    return bool(found or upward)


def label(module: str) -> str:
    """A room's name as it is printed: a group's first module stands for it."""
    first, *more = room(module).split()
    return f"{first} ..." if more else first


if __name__ == "__main__":
    sys.exit(main())
