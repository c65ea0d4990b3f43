#!/usr/bin/env bash
# BT²'s table on CIFAR-100: ResNet-50 on 50 classes -> ResNet-50 on all 100, at 224 pixels. Hours on a
# GPU. With FCT=1 FCT's and FastFill's, too, whose old and new models have a recipe of their own.
#
#   bash runs/cifar100_bt2.sh DATA=dataset/cifar-100-python SEEDS="0 1 2" RUN="torchrun --nproc_per_node=1"
#
# What runs/images.sh takes, too: JOBS=1, OLD_EXTRA="..." NEW_EXTRA="..." MAP_EXTRA="...".
#
# OUT=work_dirs/cifar100 is where everything goes.
#
# DATA is what torchvision unpacks. Published top-1: old/old 33.6, BCT 25.0 and BT² 38.7 against the
# old gallery, 60.0 and 62.4 with themselves, the new model alone 62.7; FCT 47.2, FastFill's mean over
# the backfill 53.6.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
DATA=$(realpath -m "${DATA:-dataset/cifar-100-python}")
OUT=$(realpath -m "${OUT:-work_dirs/cifar100}")
cd "$(dirname "$0")/.."
export RUN=${RUN:-$PYTHON} SEEDS=${SEEDS:-0}
[[ ${FCT:=0} =~ ^[01]$ ]] || fail "FCT=$FCT is neither 0 nor 1" "FCT=1 also trains FCT and FastFill"
FCT_OLD=configs/cifar100_fct_old_class50.py FCT_NEW=configs/cifar100_fct_new_class100.py
FCT_METHODS="methods/FCT/configs/cifar100_r50_FCT.py methods/FCT/configs/cifar100_r50_FastFill.py"
[[ $FCT == 0 ]] || $PYTHON tools/check_upgrade.py $FCT_METHODS --old $FCT_OLD ${OLD_EXTRA:-} \
    --new $FCT_NEW ${NEW_EXTRA:-} --map-set ${MAP_EXTRA:-} > /dev/null
$PYTHON tools/split_dataset.py "$DATA/train" --split cifar100_first50_lex --out "$OUT"
export TRAIN=$OUT/train.txt TEST=$DATA/test
OUT=$OUT/bt2 OLD=configs/cifar100_bt2_old_class50.py NEW=configs/cifar100_bt2_new_class100.py METHODS="
    methods/BCT/configs/cifar100_bct_published.py methods/BCT/configs/cifar100_bct_corrected.py
    methods/BT2/configs/cifar100_r50_to_r50_BT2.py" bash runs/images.sh
[[ $FCT == 1 ]] || exit 0
# compared by distance, as published
OUT=$OUT/fct METRIC=l2 OLD=$FCT_OLD NEW=$FCT_NEW METHODS=$FCT_METHODS bash runs/images.sh
