#!/usr/bin/env bash
# BT²'s chain on ImageNet: AlexNet -> VGG-13 -> ResNet-50 -> ViT-B/16, each compatible with the one
# before, and every version's queries against every version's gallery. Wants GPUs.
#
#   bash runs/imagenet_chain.sh DATA=dataset/imagenet LAUNCH="torchrun --nproc_per_node=8"
#
# OUT=work_dirs/imagenet_chain is where everything goes; EXTRA="..." is key=value for every training.
#
# Published top-1: vgg/alex 56.5, res/alex 56.7, res/vgg 61.5, vit/alex 57.9, vit/vgg 62.5, vit/res 72.0.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
DATA=$(realpath -m "${DATA:-dataset/imagenet}")
OUT=$(realpath -m "${OUT:-work_dirs/imagenet_chain}")
cd "$(dirname "$0")/.."
$PYTHON tools/check_upgrade.py --images "$DATA/val"
$PYTHON tools/train_chain.py configs/imagenet_chain.py ${EXTRA:-} --output "$OUT" \
    --launch "${LAUNCH:-torchrun --nproc_per_node=8}" --data "$DATA/train" --test "$DATA/val"
