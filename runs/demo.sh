#!/usr/bin/env bash
# The whole job on drawn faces: about 5 minutes on 2 CPU cores. `make demo` runs this.
#
# Every line is a command you can run yourself. A second run reuses what is still valid.
# SHORT=1 trains far too little on far too few faces, to see that everything runs. DEMO_DIR=... puts
# the results elsewhere. What it leaves is enough for every method's `python train.py`.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
OUT=$(realpath -m "${DEMO_DIR:-$here/work_dirs/demo${SHORT:+-short}}")
cd "$(dirname "$0")/.."
DATA=(--identities 120 --images 16 --eval-identities 100)
SETTINGS=(resume=True overwrite=True)  # keep a finished run of the same settings, else replace it
if [ -n "${SHORT:-}" ]; then
    DATA=(--identities 20 --images 8 --eval-identities 12)
    SETTINGS+=(num_epoch=1 batch_size=16)
fi
HERE=(rec="$OUT/data" feature_save="$OUT/feature_save")
OLD=demo_w16_softmax_class30 NEW=demo_w16_MixBCT ALONE=demo_w16_arc_class70
stage() { printf '\n== %s\n' "$*"; }

stage "1/9 draw faces"
$PYTHON tools/make_demo_data.py --out "$OUT/data" "${DATA[@]}"

stage "2/9 split: 30 % of the identities for the old model, the others for the new one"
$PYTHON tools/split_dataset.py "$OUT/data" --by class

stage "3/9 train the old model: softmax"
$PYTHON train_old.py configs/$OLD.py "${HERE[@]}" output="$OUT/$OLD" "${SETTINGS[@]}"

stage "4/9 extract its embeddings of the new model's images"
$PYTHON tools/extract_features.py configs/$OLD.py --SD demo_w16_softmax_class70 "${HERE[@]}" output="$OUT/$OLD"

stage "5/9 mark those that can be trusted; class means and statistics, for the other methods"
for tool in denoise average_features class_statistics; do
    $PYTHON tools/$tool.py --SD demo_w16_softmax_class70 --feature-save "$OUT/feature_save"
done

stage "6/9 train the new model, compatible by MixBCT"
(cd methods/MixBCT && $PYTHON train.py "${HERE[@]}" output="$OUT/$NEW" "${SETTINGS[@]}")

stage "7/9 train the same network alone, to see what incompatible looks like"
$PYTHON train_old.py configs/$ALONE.py "${HERE[@]}" output="$OUT/$ALONE" "${SETTINGS[@]}"

# other methods learn from this one's embeddings, too
$PYTHON tools/extract_features.py configs/$ALONE.py --SD $ALONE "${HERE[@]}" output="$OUT/$ALONE"

stage "8/9 evaluate: 1:1 and 1:N, each model with itself and against the old gallery"
$PYTHON eval/ijbc.py -d "$OUT/data" -N --far 1e-1 -o "$OUT" --overwrite \
    -m "$OUT/$NEW/model.pt" "$OUT/$ALONE/model.pt" -m_old "$OUT/$OLD/model.pt"

stage "9/9 may the new model be deployed?"
$PYTHON eval/report.py -d "$OUT/data" --far 1e-1 -o "$OUT/report" --overwrite \
    -m "$OUT/$NEW/model.pt" \
    -m_old "$OUT/$OLD/model.pt" -m_alone "$OUT/$ALONE/model.pt"
