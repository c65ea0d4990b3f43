#!/usr/bin/env bash
# Tiny-ImageNet, from half of the classes to all, by every method, in minutes on two cores.
#
#   bash runs/tiny_imagenet.sh SOURCE=../shared/data/tiny_imagenet_subset SEEDS=0
#
# Searched leave-one-out among its validation images. The table is work_dirs/tiny_imagenet/retrieval.md.
#
# What runs/images.sh takes, too: RUN="..." OLD_EXTRA="..." NEW_EXTRA="..." MAP_EXTRA="...", JOBS=2
# (default: a run for each core), METHODS="..." (default: all). OUT=work_dirs/tiny_imagenet is where
# everything goes.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
SOURCE=$(realpath -m "${SOURCE:-../shared/data/tiny_imagenet_subset}")
export OUT=$(realpath -m "${OUT:-work_dirs/tiny_imagenet}")
cd "$(dirname "$0")/.."
export JOBS=${JOBS:-$(nproc)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((JOBS > 1 ? 1 : $(nproc)))}
$PYTHON tools/unpack.py "$SOURCE" --out "$OUT/data"
$PYTHON tools/split_dataset.py "$OUT/data/train" --by class --ratio 50 --out "$OUT"
TRAIN=$OUT/train.txt TEST=$OUT/data/val OLD=configs/tiny_imagenet_old_class50.py \
    NEW=configs/tiny_imagenet_new_class100.py SEEDS=${SEEDS:-0} \
    METHODS=${METHODS:-$(echo methods/*/configs/tiny_imagenet_*.py)} bash runs/images.sh
