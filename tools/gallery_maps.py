"""Prints those of some configs whose method maps the stored old gallery, one a line.

    python tools/gallery_maps.py methods/*/configs/omniglot_*.py

Such a method leaves no network of its own: the new model is the one trained alone. runs/images.sh
and runs/benchmark.sh ask, because they give and evaluate it in another way.
"""

import sys
from pathlib import Path

from bct.command import run_cli
from bct.method import method_of


def main() -> None:
    for config in sys.argv[1:]:
        if method_of(Path(config)).maps_gallery:
            print(config)


if __name__ == "__main__":
    run_cli(main)
