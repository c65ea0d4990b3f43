#!/usr/bin/env bash
# openBCT's table on ImageNet: ResNet-18 on half of the classes -> ResNet-50 on all, by each of its
# losses. Wants GPUs: about 5 x 90 epochs of ResNet-50.
#
#   bash runs/imagenet_openbct.sh DATA=dataset/imagenet RUN="torchrun --nproc_per_node=8"
#
# What runs/images.sh takes, too: JOBS=1, OLD_EXTRA="..." NEW_EXTRA="..." MAP_EXTRA="...".
# METHODS="..." are some of methods/OpenBCT/configs/imagenet_*.py, OUT=work_dirs/imagenet_openbct is
# where everything goes, SEEDS="0".
#
# DATA has train/ and val/, a folder per class in each. openBCT trained its old model on a list of its
# own; this takes the first 500 classes by name. Published top-1: old/old 39.5, influence 42.2,
# normalised classifier 46.8, l2 13.0, triplet 42.9, contrastive 42.7 against the old gallery (of
# these the first two without normalised embeddings).
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
DATA=$(realpath -m "${DATA:-dataset/imagenet}")
export OUT=$(realpath -m "${OUT:-work_dirs/imagenet_openbct}")
cd "$(dirname "$0")/.."
export RUN=${RUN:-torchrun --nproc_per_node=8}
$PYTHON tools/split_dataset.py "$DATA/train" --by class --ratio 50 --out "$OUT"
TRAIN=$OUT/train.txt TEST=$DATA/val OLD=configs/imagenet_r18_class50.py NEW=configs/imagenet_r50_class100.py \
    METHODS=${METHODS:-$(echo methods/OpenBCT/configs/imagenet_r18_to_r50_*.py)} bash runs/images.sh
