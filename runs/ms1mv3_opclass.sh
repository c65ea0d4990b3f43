#!/usr/bin/env bash
# The published MixBCT experiment, open-class, on 8 GPUs: r18 softmax 128-d old model on class30 of
# MS1MV3, r50 MixBCT 128-d new model on class70. 35 epochs, batch 128 x 8, lr 0.1, weight decay 5e-4,
# seed 666: these are the configs' and configs/base.py's values.
#
#   IJB=/data/ijb bash runs/ms1mv3_opclass.sh
#
# Needs dataset/ms1m-retinaface-t1/train.{rec,idx} (5,179,510 images, 93,431 identities) and, in $IJB,
# the folder IJBC/ with loose_crop/ and meta/. About 54,000 + 123,000 steps.
set -euo pipefail
: "${IJB:?set IJB to the folder that contains IJBC/}"
IJB=$(realpath "$IJB")
cd "$(dirname "$0")/.."
GPUS=${GPUS:-8}
PYTHON=${PYTHON:-python}
RUN="torchrun --standalone --nproc_per_node=$GPUS"
OLD=f128_r18_softmax_class30
NEW=OPclass_ms1mv3_r18_to_r50_MixBCT_softmax_to_arc_f128

# 1. 28,029 identities (1,581,241 images) for the old model, 65,402 (3,598,269) for the new one
$PYTHON tools/split_dataset.py dataset/ms1m-retinaface-t1 --ratio 30 --by class

# 2. the old model
$RUN train_old.py configs/$OLD.py resume=True

# 3. its embeddings of the new model's images (1.8 GB), and which of them can be trusted
$RUN tools/extract_features.py configs/$OLD.py --SD f128_r18_softmax_class70
$PYTHON tools/denoise.py --T 0.9 --SD f128_r18_softmax_class70

# 4. the new model
(cd methods/MixBCT && $RUN train.py configs/$NEW.py resume=True)

# 5. self and cross tests, 1:1 and 1:N
$RUN eval/ijbc.py -d "$IJB" -N -m work_dirs/$NEW/model.pt -m_old work_dirs/$OLD/model.pt
