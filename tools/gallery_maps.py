"""Prints those of some configs whose method maps the stored old gallery, one a line.

    python tools/gallery_maps.py methods/*/configs/omniglot_*.py

Such a method leaves no network of its own: the new model is the one trained alone. runs/images.sh
and runs/benchmark.sh ask, because they give and evaluate it in another way.
"""

from pathlib import Path

from bct.command import Parser, run_cli, some_text
from bct.method import method_of


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("configs", nargs="*", type=some_text, help="of methods")
    for config in parser.parse_args().configs:
        if method_of(Path(config)).maps_gallery:
            print(config)


if __name__ == "__main__":
    run_cli(main)
