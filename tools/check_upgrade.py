"""Refuses at the start of an upgrade what would only be found at its end.

    python tools/check_upgrade.py methods/*/configs/omniglot_*.py \\
        --old configs/omniglot_old_class50.py --new configs/omniglot_new_class100.py lr=0.1 \\
        --set lr=0.1 --map-set num_epoch=20 --images work_dirs/omniglot/test.txt
    python tools/check_upgrade.py --ijbc /data/ijb --far 1e-4 --bin lfw.bin

The scripts of runs/ ask it before their first training: do all configs and keys exist, do the
methods name these two models and take their widths, can the test sets be judged. Prints those of
the configs whose method maps the stored old gallery, one a line: such a method leaves no network of
its own, the new model is the one trained alone, and is evaluated in another way.
"""

import argparse
from pathlib import Path

from easydict import EasyDict

from bct.command import Parser, file_path, rate, run_cli, some_text
from bct.config import load_config
from bct.errors import BctError
from bct.method import Method, method_of
from bct.protocols.compare import check_resolved
from bct.protocols.image_search import open_search
from bct.protocols.landmarks import open_landmarks
from bct.protocols.market import open_market
from bct.protocols.pairs import open_bin
from tools.ijbc.comparison import check_pairs
from tools.ijbc.protocol import read_protocol


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("configs", nargs="*", type=some_text, help="of methods")
    model = {"nargs": "+", "type": some_text, "metavar": "CONFIG KEY=VALUE"}
    add("--old", **model, help="the old model's config")
    add("--new", **model, help="that of the new network trained alone")
    keys = {"nargs": "*", "type": some_text, "default": [], "metavar": "KEY=VALUE"}
    add("--set", **keys, help="for methods that train a network")
    add("--map-set", **keys, help="for methods that map the gallery")
    add("--images", type=some_text, metavar="SET", help="of searches")
    add("--landmarks", nargs=2, type=some_text, metavar=("NAME", "ROOT"), help="of searches")
    add("--reid", type=some_text, metavar="ROOT", help="of searches: Market-1501's folder")
    add("--ijbc", type=some_text, metavar="FOLDER", help="that contains IJBC/")
    add("--bin", type=file_path, help="a verification set")
    add("--far", type=rate, default=1e-2, help="that the faces' pairs must resolve")
    args = parser.parse_args()
    check_tests(args)
    models = {"old": args.old, "new": args.new}
    alone = {role: load_config(m[0], m[1:]) for role, m in models.items() if m}
    for config in args.configs:
        method = method_of(Path(config))
        keys = args.map_set if method.maps_gallery else args.set
        check_method(method, load_config(config, keys, method.defaults), alone)
        if method.maps_gallery:
            print(config)


def check_tests(args: argparse.Namespace) -> None:
    """Raises BctError for a test set that can't be opened or judged."""
    if args.images:
        open_search(args.images)
    if args.landmarks:
        name, root = args.landmarks
        open_landmarks(root, name)
    if args.reid:
        open_market(args.reid)
    if args.ijbc:
        check_resolved(read_protocol(args.ijbc), args.far)
    if args.bin:
        check_pairs(open_bin(args.bin))


def check_method(method: type[Method], cfg: EasyDict, alone: dict[str, EasyDict]) -> None:
    """Raises BctError for a method that can't follow these models.

    Args:
        cfg: the method's. alone: "old" and "new", as far as there are any -> its config.
    """
    needs = method.needs(cfg)
    for role, key in (("old", "old_config"), ("new", "new_config")):
        wanted = role == "old" or "new_embedding" in needs
        in_folder = cfg.get(f"{role}_model")  # whatever the config of its run
        if role not in alone or not wanted or in_folder:
            continue
        if cfg[key] is None or Path(cfg[key]).stem != alone[role].name:
            raise BctError(
                f"{cfg.name} is not for these models: its {key} is {cfg[key]}, the {role} one is "
                f"{alone[role].name}",
                f"take another config, or set {key}={alone[role].name}",
            )
    if "old" in alone:
        method.check_dimensions(cfg, alone["old"].embedding_size)
    if "new" in alone and "new_embedding" in needs:
        width = alone["new"].embedding_size
        if cfg.embedding_size != width:
            raise BctError(
                f"{cfg.name}: the new network alone has {width}-d embeddings, embedding_size is "
                f"{cfg.embedding_size}",
                f"set embedding_size={width}",
            )


if __name__ == "__main__":
    run_cli(main)
