#!/usr/bin/env bash
# Does a new network gain from the old model's weights? LFW, open-class scenario, SEEDS seeds.
#
#   bash runs/lfw_init_from.sh LFW=../shared/data/lfw IJBC=../shared/data/lfw_ijbc
#
# Old and new network are the same, so that the weights fit. Per seed: the old model; the new network
# trained alone and by each method, from drawn weights and from the old model's (init_from). One table
# at the end: a method is compatible as runs/benchmark.sh's is. A finished run is kept, a killed one
# continues.
#
#   OUT=work_dirs/lfw_init_from   where everything goes     SEEDS="0 1 2"   METHODS="MixBCT L2"
#   MODEL="network=demo_w32 embedding_size=128"             of both
#   OLD="batch_size=64 ..." NEW="batch_size=32 ..."         config values, below are the defaults
#   FAR=1e-2                                                of the table
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
: "${LFW:?set LFW to the folder with train.rec}" "${IJBC:?set IJBC to the folder that contains IJBC/}"
LFW=$(realpath -m "$LFW") IJBC=$(realpath -m "$IJBC") OUT=$(realpath -m "${OUT:-$here/work_dirs/lfw_init_from}")
SEEDS=${SEEDS:-0 1 2} METHODS=${METHODS:-MixBCT L2} FAR=${FAR:-1e-2}
whole_numbers SEEDS
MODEL=${MODEL:-network=demo_w32 embedding_size=128}
OLD=${OLD:-batch_size=64 num_epoch=16}
NEW=${NEW:-batch_size=32 num_epoch=10 margin_list=(1,.3,0) scale=16.0}
cd "$(dirname "$0")/.."
PARTS="$OUT/data/train.rec" CONFIGS=""
for method in $METHODS; do CONFIGS+=" methods/$method/configs/bench_$method.py"; done
$PYTHON tools/check_upgrade.py $CONFIGS --old configs/bench_old_class30.py $MODEL $OLD --set scenario=OPclass old_config=bench_old_class30 $MODEL $NEW \
    --ijbc "$IJBC" --far "$FAR"
$PYTHON tools/split_dataset.py "$LFW" --out "$OUT/data" --ratio 30 --by class

for seed in $SEEDS; do
    old="$OUT/class/seed$seed/old" new="$OUT/OPclass/seed$seed"
    features="$OUT/class/seed$seed/feature_save"
    $PYTHON train_old.py configs/bench_old_class30.py rec="$PARTS" $MODEL $OLD seed="$seed" \
        output="$old" resume=True
    $PYTHON tools/make_artefacts.py $CONFIGS \
        --set scenario=OPclass old_config=bench_old_class30 feature_save="$features" \
        --model configs/bench_old_class30.py rec="$PARTS" $MODEL $OLD output="$old" resume=True
    common="rec=$PARTS $MODEL $NEW seed=$((1000 + seed)) resume=True"
    for start in drawn from_old; do
        [[ $start == drawn ]] && end="" init="" || { end=_from_old; init="init_from=$old"; }
        $PYTHON train_old.py configs/bench_alone_class100.py shard=class70 $common $init \
            output="$new/alone$end"
        for method in $METHODS; do
            (cd "methods/$method" && $PYTHON train.py "configs/bench_$method.py" scenario=OPclass \
                old_config=bench_old_class30 feature_save="$features" $common $init \
                output="$new/$method$end")
        done
    done
done

$PYTHON eval/benchmark.py "$OUT" -d "$IJBC" --far "$FAR"
