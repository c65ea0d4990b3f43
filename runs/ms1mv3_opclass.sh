#!/usr/bin/env bash
# The published MixBCT experiment, open-class, on 8 GPUs: r18 softmax 128-d old model on class30 of
# MS1MV3, r50 MixBCT 128-d new model on class70. 35 epochs, batch 128 x 8, lr 0.1, weight decay 5e-4,
# seed 666: these are the configs' and configs/base.py's values.
#
#   bash runs/ms1mv3_opclass.sh IJB=/data/ijb GPUS=8
#
# DATA=dataset/ms1m-retinaface-t1 holds train.{rec,idx} (5,179,510 images, 93,431 identities), IJB the
# folder IJBC/ with loose_crop/ and meta/. About 54,000 + 123,000 steps.
#
#   OUT=work_dirs                       where everything goes, but the parts, which lie beside DATA
#   OLD_EXTRA="..." NEW_EXTRA="..."     key=value for the old model, for the new one
#   FAR=1e-4                            of the verdict
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
: "${IJB:?set IJB to the folder that contains IJBC/}"
IJB=$(realpath -m "$IJB") DATA=$(realpath -m "${DATA:-$here/dataset/ms1m-retinaface-t1}")
OUT=$(realpath -m "${OUT:-$here/work_dirs}")
GPUS=${GPUS:-8} FAR=${FAR:-1e-4} OLD_EXTRA=${OLD_EXTRA:-} NEW_EXTRA=${NEW_EXTRA:-}
whole_numbers GPUS
cd "$(dirname "$0")/.."
RUN="torchrun --standalone --nproc_per_node=$GPUS"
OLD=f128_r18_softmax_class30 SD=f128_r18_softmax_class70
NEW=OPclass_ms1mv3_r18_to_r50_MixBCT_softmax_to_arc_f128
WHERE="rec=$DATA feature_save=$OUT/feature_save"
$PYTHON tools/check_upgrade.py methods/MixBCT/configs/$NEW.py --old configs/$OLD.py $OLD_EXTRA \
    --set $NEW_EXTRA --ijbc "$IJB" --far "$FAR"

# 1. 28,029 identities (1,581,241 images) for the old model, 65,402 (3,598,269) for the new one
$PYTHON tools/split_dataset.py "$DATA" --ratio 30 --by class

# 2. the old model
$RUN train_old.py configs/$OLD.py $WHERE output="$OUT/$OLD" $OLD_EXTRA resume=True

# 3. its embeddings of the new model's images (1.8 GB), and which of them can be trusted
$RUN tools/extract_features.py configs/$OLD.py --SD $SD $WHERE output="$OUT/$OLD" $OLD_EXTRA
$PYTHON tools/denoise.py --T 0.9 --SD $SD --feature-save "$OUT/feature_save"

# 4. the new model
(cd methods/MixBCT && $RUN train.py configs/$NEW.py $WHERE output="$OUT/$NEW" $NEW_EXTRA resume=True)

# 5. self and cross tests, 1:1 and 1:N
$RUN eval/ijbc.py -d "$IJB" -N --far "$FAR" -o "$OUT/ijbc" --overwrite \
    -m "$OUT/$NEW/model.pt" -m_old "$OUT/$OLD/model.pt"
