"""Makes all that methods need of an old model, and of a new model trained alone.

    python tools/make_artefacts.py methods/BT2/configs/omniglot_bt2.py methods/L2/configs/x.py \\
        --model configs/omniglot_old_class50.py output=work_dirs/old rec=x/train.txt \\
        --model configs/omniglot_new_class100.py output=work_dirs/alone rec=x/train.txt

Asks each config's method what it needs and runs the tools that make it, each once; what is still
valid they keep. A model's embeddings are extracted by its config, as the method's config names it,
or from its folder, old_model or new_model; --model says where that is and what to add to it.
"""

import shlex
import sys
from pathlib import Path

from bct.command import Parser, file_path, run_cli, run_step, words
from bct.config import load_config
from bct.method import method_of
from bct.stored.places import artefact_commands


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("configs", nargs="+", type=file_path, help="of methods")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every method's config")
    add("--model", nargs="+", action="append", default=[], metavar="CONFIG|FOLDER KEY=VALUE",
        help="where that model is, and what to add to its extraction")  # fmt: skip
    add("--launch", type=words, default=[sys.executable], help="how an extraction is started")
    args = parser.parse_args()
    folders = {Path(name).absolute(): added for name, *added in args.model if Path(name).is_dir()}
    models = {Path(config).stem: (config, added) for config, *added in args.model}
    for command in commands(args.configs, args.set):
        tool, *rest = command[1:]
        start = [sys.executable]
        if Path(tool).stem == "extract_features":
            start = args.launch
            if rest[0] == "--model":
                rest += folders.get(Path(rest[1]), [])
            else:
                config, added = models.get(Path(rest[0]).stem, (rest[0], []))
                rest = [config, *rest[1:], *added]
        run_step([*start, tool, *rest])


def commands(configs: list[Path], overrides: list[str]) -> list[list[str]]:
    """The words of every command that these methods' configs need, each once."""
    found: list[list[str]] = []
    for file in configs:
        method = method_of(file)
        cfg = load_config(file, overrides, method.defaults)
        for command in artefact_commands(cfg, method.needs(cfg)):
            if shlex.split(command) not in found:
                found.append(shlex.split(command))
    return found


if __name__ == "__main__":
    run_cli(main)
