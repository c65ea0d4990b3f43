#!/usr/bin/env bash
# An old model from elsewhere, upgraded on real faces: LFW, extended-class scenario, an hour on 2 CPU
# cores.
#
#   bash runs/lfw_elsewhere.sh LFW=../shared/data/lfw IJBC=../shared/data/lfw_ijbc
#
# A plain torch loop that shares no code with bct's training makes the old model: ResNet-18 on faces of
# 64 pixels, normalised as ImageNet's, its classes in another order, its class centres in a file per
# rank. It is imported, upgraded by four methods; once more from its ONNX file; and once with nothing
# left but the embeddings and labels of its own 30 % of the people. The tables are <OUT>/*/table.md.
#
#   OUT=work_dirs/elsewhere      where everything goes       FAR=1e-2   of the tables
#   NEW="network=demo_w32 ..."   config values of the new networks, below are the defaults
#   MAP="num_epoch=40 ..."       of the map of the gallery (FCT)
#   EPOCHS=20                    of the old model's training
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
: "${LFW:?set LFW to the folder with train.rec}" "${IJBC:?set IJBC to the folder that contains IJBC/}"
LFW=$(realpath -m "$LFW") IJBC=$(realpath -m "$IJBC") OUT=$(realpath -m "${OUT:-$here/work_dirs/elsewhere}")
FAR=${FAR:-1e-2} EPOCHS=${EPOCHS:-20} MAP=${MAP:-} SEED=1000
NEW=${NEW:-network=demo_w32 batch_size=32 num_epoch=12 margin_list=(1,.3,0) scale=16.0}
whole_numbers EPOCHS
cd "$(dirname "$0")/.."
NEW="$NEW embedding_size=512 rec=$LFW resume=True"   # as wide as the old model
MAP="$MAP embedding_size=512 rec=$LFW resume=True"
PART=$OUT/data/train_part_30_class.rec MODEL=$OUT/model
OLD=$OUT/weights/class/seed0/old LEFT=$OUT/left ALONE=$OUT/weights/EXclass/seed0/alone

$PYTHON tools/check_upgrade.py --new configs/bench_alone_class100.py $NEW --ijbc "$IJBC" --far "$FAR"

# 1. the old model, made elsewhere
$PYTHON tools/split_dataset.py "$LFW" --out "$OUT/data" --ratio 30 --by class
[[ -f $MODEL/model.onnx ]] || $PYTHON -m benchmarks.elsewhere "$PART" -o "$MODEL" --epochs "$EPOCHS"

# 2. what is known of it: its weights and class centres; its ONNX file; embeddings and labels alone
seen="--image-size 64 --crop none --pixels imagenet"
imported() { [[ -f $1/import.json ]] || $PYTHON tools/import_model.py "${@:2}" -o "$1" $seen; }
imported "$OLD" "$MODEL/backbone.pth" --network resnet18 \
    --classifier "$MODEL"/rank_*_softmax_weight.pt --classifier-scale 30
imported "$OUT/onnx/class/seed0/old" "$MODEL/model.onnx"
[[ -d $LEFT/features ]] || $PYTHON tools/import_features.py "$MODEL/features.npy" "$MODEL/labels.npy" \
    --rec "$LFW" --of "$PART" -o "$LEFT"
mkdir -p "$OUT/features/class/seed0" "$OUT"/{onnx,features}/EXclass/seed0
ln -sfn "$OLD" "$OUT/features/class/seed0/old"   # it judges, it teaches nobody

# 3. the new network alone, which the three upgrades share
$PYTHON train_old.py configs/bench_alone_class100.py $NEW seed=$SEED output="$ALONE"
for what in onnx features; do ln -sfn "$ALONE" "$OUT/$what/EXclass/seed0/alone"; done

# 4. the upgrades
upgrade() {  # what, old model's folder, method
    local config="methods/$3/configs/bench_$3.py" out="$OUT/$1/EXclass/seed0/$3" here=(old_model="$2")
    [[ $3 == FCT ]] && here+=(new_model="$ALONE" $MAP) || here+=($NEW)
    $PYTHON tools/make_artefacts.py "$config" --set "${here[@]}"
    (cd "methods/$3" && $PYTHON train.py "configs/bench_$3.py" "${here[@]}" seed=$SEED output="$out")
}
for method in MixBCT BCT L2 FCT; do upgrade weights "$OLD" $method; done
upgrade onnx "$OUT/onnx/class/seed0/old" MixBCT
for method in MixBCT BCT L2 FCT; do upgrade features "$LEFT" $method; done

# 5. each with itself and against the old gallery
for what in weights onnx features; do
    $PYTHON eval/benchmark.py "$OUT/$what" -d "$IJBC" --far "$FAR" --cache "$OUT/cache"
done
