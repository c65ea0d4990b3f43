"""Packs a folder of identity folders into a record file, image files passed through byte for byte.

    python tools/folder_to_rec.py aligned_faces/ dataset/mine

Writes train.rec, train.idx, `property` and identities.txt (label order: sorted folder names) in
insightface's layout, train.rec last, so that the same command can be given again where it was
killed. Every image has to be an aligned 112x112 face.
"""

from bct.command import Parser, file_path, run_cli
from tools.formats.pack import pack


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=file_path, help="one sub-folder per identity")
    parser.add_argument("out", type=file_path, help="folder for train.rec")
    args = parser.parse_args()
    pack(args.folder, args.out)


if __name__ == "__main__":
    run_cli(main)
