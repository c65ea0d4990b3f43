#!/usr/bin/env bash
# The whole job on real faces: LFW, open-class scenario, about half an hour on 2 CPU cores.
#
#   bash runs/lfw_opclass.sh LFW=../shared/data/lfw IJBC=../shared/data/lfw_ijbc
#
# LFW is a folder with train.rec (aligned 112x112), IJBC a folder that contains IJBC/. Figures to
# expect (seed 666) are in the README. A second run reuses what is still valid.
#
#   OUT=work_dirs                       where everything goes          FAR=1e-2   of the tables
#   OLD_EXTRA="..." NEW_EXTRA="..."     key=value for the old model, for the new ones
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
: "${LFW:?set LFW to the folder with train.rec}" "${IJBC:?set IJBC to the folder that contains IJBC/}"
LFW=$(realpath -m "$LFW") IJBC=$(realpath -m "$IJBC") OUT=$(realpath -m "${OUT:-$here/work_dirs}")
FAR=${FAR:-1e-2} OLD_EXTRA=${OLD_EXTRA:-} NEW_EXTRA=${NEW_EXTRA:-}
cd "$(dirname "$0")/.."
OLD=lfw_w16_softmax_class30 ALONE=lfw_w24_arc_class70 NEW=lfw_w16_to_w24_MixBCT
WHERE="rec=$OUT/lfw/data feature_save=$OUT/lfw/feature_save"
AGAIN="resume=True overwrite=True"   # keep a finished run of the same settings, else replace it
$PYTHON tools/check_upgrade.py methods/MixBCT/configs/$NEW.py --old configs/$OLD.py $OLD_EXTRA \
    --set $NEW_EXTRA --ijbc "$IJBC" --far "$FAR"

# 1. 355 identities for the old model, the other 829 for the new one
$PYTHON tools/split_dataset.py "$LFW" --out "$OUT/lfw/data" --ratio 30 --by class

# 2. the old model: demo-sized, softmax, 128-d, on class30
$PYTHON train_old.py configs/$OLD.py $WHERE output="$OUT/$OLD" $OLD_EXTRA $AGAIN

# 3. its embeddings of the new model's images, and which of them can be trusted
$PYTHON tools/extract_features.py configs/$OLD.py --SD lfw_w16_softmax_class70 $WHERE \
    output="$OUT/$OLD" $OLD_EXTRA
$PYTHON tools/denoise.py --T 0.9 --SD lfw_w16_softmax_class70 --feature-save "$OUT/lfw/feature_save"

# 4. the new model: wider, ArcFace, on class70, compatible by MixBCT
(cd methods/MixBCT && $PYTHON train.py configs/$NEW.py $WHERE output="$OUT/$NEW" $NEW_EXTRA $AGAIN)

# 5. the same network trained alone, to see what incompatible looks like
$PYTHON train_old.py configs/$ALONE.py $WHERE output="$OUT/$ALONE" $NEW_EXTRA $AGAIN

# 6. IJB-C-format evaluation, 1:1 and 1:N, self and cross
$PYTHON eval/ijbc.py -d "$IJBC" -N --far "$FAR" -o "$OUT/lfw" --overwrite \
    -m "$OUT/$NEW/model.pt" "$OUT/$ALONE/model.pt" -m_old "$OUT/$OLD/model.pt"

# 7. may it be deployed? The page with the answer
$PYTHON eval/report.py -d "$IJBC" --far "$FAR" -o "$OUT/lfw/report" --overwrite \
    -m "$OUT/$NEW/model.pt" -m_old "$OUT/$OLD/model.pt" -m_alone "$OUT/$ALONE/model.pt"
