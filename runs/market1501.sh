#!/usr/bin/env bash
# Market-1501: an old ResNet-50 on half of the people, a ResNet-101 on all by every method, on GPUs.
#
#   bash runs/market1501.sh DATA=dataset/Market-1501 INIT_OLD=resnet50.pth INIT=resnet101.pth \
#       RUN="torchrun --nproc_per_node=4" SEEDS="0 1 2"
#
# DATA holds bounding_box_train, query and bounding_box_test, as published. INIT_OLD and INIT are timm's
# ImageNet weights of the two networks; without them both start from drawn weights, and nothing is
# comparable with published figures. The table is work_dirs/market1501/retrieval.md.
#
# What runs/images.sh takes, too: OLD_EXTRA="..." NEW_EXTRA="...", JOBS=1, METHODS="..." (default: all).
# OUT=work_dirs/market1501 is where everything goes.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
DATA=$(realpath -m "${DATA:-$here/dataset/Market-1501}")
export OUT=$(realpath -m "${OUT:-work_dirs/market1501}")
export OLD_EXTRA="${INIT_OLD:+init_from=$(realpath -m "$INIT_OLD")} ${OLD_EXTRA:-}"
export NEW_EXTRA="${INIT:+init_from=$(realpath -m "$INIT")} ${NEW_EXTRA:-}"
begin_with "${INIT_OLD:-}" "${INIT:-}"
cd "$(dirname "$0")/.."
$PYTHON tools/split_dataset.py "$DATA/bounding_box_train" --by class --ratio 50 --out "$OUT"
TRAIN=$OUT/bounding_box_train.txt TEST=$DATA PROTOCOL=people \
    OLD=configs/market1501_old_class50.py NEW=configs/market1501_new_class100.py \
    SEEDS=${SEEDS:-0} METHODS=${METHODS:-$(echo methods/*/configs/market1501_*.py)} \
    bash runs/images.sh
