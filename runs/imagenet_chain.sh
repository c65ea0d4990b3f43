#!/usr/bin/env bash
# BT²'s chain on ImageNet: AlexNet -> VGG-13 -> ResNet-50 -> ViT-B/16, each compatible with the one
# before, and every version's queries against every version's gallery. Wants GPUs.
#
#   bash runs/imagenet_chain.sh DATA=dataset/imagenet LAUNCH="torchrun --nproc_per_node=8"
#
# Published top-1: vgg/alex 56.5, res/alex 56.7, res/vgg 61.5, vit/alex 57.9, vit/vgg 62.5, vit/res 72.0.
set -euo pipefail
for argument in "$@"; do
    [[ $argument =~ ^[A-Z_]+= ]] || { echo "error: $argument is not NAME=value" >&2
        echo "  -> see the head of runs/imagenet_chain.sh" >&2; exit 2; }
    export "${argument?}"
done
DATA=$(realpath -m "${DATA:-dataset/imagenet}")
OUT=$(realpath -m "${OUT:-work_dirs/imagenet_chain}")
cd "$(dirname "$0")/.."
${PYTHON:-python} tools/train_chain.py configs/imagenet_chain.py --output "$OUT" \
    --launch "${LAUNCH:-torchrun --nproc_per_node=8}" --data "$DATA/train" --test "$DATA/val"
