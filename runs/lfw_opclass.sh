#!/usr/bin/env bash
# The whole job on real faces: LFW, open-class scenario, about half an hour on 2 CPU cores.
#
#   LFW=../shared/data/lfw IJBC=../shared/data/lfw_ijbc bash runs/lfw_opclass.sh
#
# LFW is a folder with train.rec (aligned 112x112), IJBC a folder that contains IJBC/. Figures to
# expect (seed 666) are in the README. A second run reuses what is still valid.
set -euo pipefail
: "${LFW:?set LFW to the folder with train.rec}" "${IJBC:?set IJBC to the folder that contains IJBC/}"
LFW=$(realpath "$LFW"); IJBC=$(realpath "$IJBC")
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
AGAIN="resume=True overwrite=True"   # keep a finished run of the same settings, else replace it

# 1. 355 identities for the old model, the other 829 for the new one
$PYTHON tools/split_dataset.py "$LFW" --out work_dirs/lfw/data --ratio 30 --by class

# 2. the old model: demo-sized, softmax, 128-d, on class30
$PYTHON train_old.py configs/lfw_w16_softmax_class30.py $AGAIN

# 3. its embeddings of the new model's images, and which of them can be trusted
$PYTHON tools/extract_features.py configs/lfw_w16_softmax_class30.py --SD lfw_w16_softmax_class70
$PYTHON tools/denoise.py --T 0.9 --SD lfw_w16_softmax_class70

# 4. the new model: wider, ArcFace, on class70, compatible by MixBCT
(cd methods/MixBCT && $PYTHON train.py configs/lfw_w16_to_w24_MixBCT.py $AGAIN)

# 5. the same network trained alone, to see what incompatible looks like
$PYTHON train_old.py configs/lfw_w24_arc_class70.py $AGAIN

# 6. IJB-C-format evaluation, 1:1 and 1:N, self and cross
$PYTHON eval/ijbc.py -d "$IJBC" -N --far 1e-2 -o work_dirs/lfw --overwrite \
    -m work_dirs/lfw_w16_to_w24_MixBCT/model.pt work_dirs/lfw_w24_arc_class70/model.pt \
    -m_old work_dirs/lfw_w16_softmax_class30/model.pt

# 7. may it be deployed? The page with the answer
$PYTHON eval/report.py -d "$IJBC" --far 1e-2 -o work_dirs/lfw/report --overwrite \
    -m work_dirs/lfw_w16_to_w24_MixBCT/model.pt \
    -m_old work_dirs/lfw_w16_softmax_class30/model.pt \
    -m_alone work_dirs/lfw_w24_arc_class70/model.pt
