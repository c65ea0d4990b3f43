#!/usr/bin/env bash
# BT²'s table on ImageNet: ResNet-50 on 500 classes -> ResNet-50 on all. Wants GPUs: 5 x 100 epochs of
# ResNet-50, one of them on half of the images. With FCT=1 FCT's and FastFill's, too, whose old and new
# models have a recipe of their own.
#
#   bash runs/imagenet_bt2.sh DATA=dataset/imagenet RUN="torchrun --nproc_per_node=8" SEEDS=0
#
# What runs/images.sh takes, too: JOBS=1, OLD_EXTRA="..." NEW_EXTRA="..." MAP_EXTRA="...".
# OUT=work_dirs/imagenet_bt2 is where everything goes.
#
# DATA has train/ and val/, a folder per class in each; the old model sees the first 500 classes by
# name. The published batch of 256 is one process's here: batch_size=32 in OLD_EXTRA and NEW_EXTRA
# makes it that of 8. Published top-1: old/old 40.9, BCT 44.3 and BT² 44.4 against the old gallery, 65.3
# and 66.6 with themselves, the new model alone 67.9; FCT 61.8 (its own old/old: 46.4), FastFill's mean
# over the backfill 66.5.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
DATA=$(realpath -m "${DATA:-dataset/imagenet}")
OUT=$(realpath -m "${OUT:-work_dirs/imagenet_bt2}")
cd "$(dirname "$0")/.."
export RUN=${RUN:-torchrun --nproc_per_node=8} SEEDS=${SEEDS:-0}
[[ ${FCT:=0} =~ ^[01]$ ]] || fail "FCT=$FCT is neither 0 nor 1" "FCT=1 also trains FCT and FastFill"
FCT_OLD=configs/imagenet_fct_old_class50.py FCT_NEW=configs/imagenet_fct_new_class100.py
FCT_METHODS="methods/FCT/configs/imagenet_r50_FCT.py methods/FCT/configs/imagenet_r50_FastFill.py"
[[ $FCT == 0 ]] || $PYTHON tools/check_upgrade.py $FCT_METHODS --old $FCT_OLD ${OLD_EXTRA:-} \
    --new $FCT_NEW ${NEW_EXTRA:-} --map-set ${MAP_EXTRA:-} > /dev/null
$PYTHON tools/split_dataset.py "$DATA/train" --by class --ratio 50 --out "$OUT"
export TRAIN=$OUT/train.txt TEST=$DATA/val
OUT=$OUT/bt2 OLD=configs/imagenet_bt2_old_class50.py NEW=configs/imagenet_bt2_new_class100.py METHODS="
    methods/BCT/configs/imagenet_bct_published.py methods/BCT/configs/imagenet_bct_corrected.py
    methods/BT2/configs/imagenet_r50_to_r50_BT2.py" bash runs/images.sh
[[ $FCT == 1 ]] || exit 0
# compared by distance, as published
OUT=$OUT/fct METRIC=l2 OLD=$FCT_OLD NEW=$FCT_NEW METHODS=$FCT_METHODS bash runs/images.sh
