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
for argument in "$@"; do
    [[ $argument =~ ^[A-Z]+= ]] || { echo "error: $argument is not NAME=value" >&2
        echo "  -> see the head of runs/lfw_init_from.sh" >&2; exit 2; }
    export "${argument?}"
done
: "${LFW:?set LFW to the folder with train.rec}" "${IJBC:?set IJBC to the folder that contains IJBC/}"
PYTHON=${PYTHON:-python} OUT=${OUT:-work_dirs/lfw_init_from} FAR=${FAR:-1e-2}
SEEDS=${SEEDS:-0 1 2} METHODS=${METHODS:-MixBCT L2}
MODEL=${MODEL:-network=demo_w32 embedding_size=128}
OLD=${OLD:-batch_size=64 num_epoch=16}
NEW=${NEW:-batch_size=32 num_epoch=10 margin_list=(1,.3,0) scale=16.0}
LFW=$(realpath "$LFW") IJBC=$(realpath "$IJBC") OUT=$(realpath -m "$OUT")
cd "$(dirname "$0")/.."
PARTS="$OUT/data/train.rec"
$PYTHON tools/split_dataset.py "$LFW" --out "$OUT/data" --ratio 30 --by class

for seed in $SEEDS; do
    old="$OUT/class/seed$seed/old" here="$OUT/OPclass/seed$seed"
    features="$OUT/class/seed$seed/feature_save"
    $PYTHON train_old.py configs/bench_old_class30.py rec="$PARTS" $MODEL $OLD seed="$seed" \
        output="$old" resume=True
    $PYTHON tools/make_artefacts.py $(for m in $METHODS; do echo "methods/$m/configs/bench_$m.py"; done) \
        --set scenario=OPclass old_config=bench_old_class30 feature_save="$features" \
        --model configs/bench_old_class30.py rec="$PARTS" $MODEL $OLD output="$old" resume=True
    common="rec=$PARTS $MODEL $NEW seed=$((1000 + seed)) resume=True"
    for start in drawn from_old; do
        [[ $start == drawn ]] && end="" init="" || { end=_from_old; init="init_from=$old"; }
        $PYTHON train_old.py configs/bench_alone_class100.py shard=class70 $common $init \
            output="$here/alone$end"
        for method in $METHODS; do
            (cd "methods/$method" && $PYTHON train.py "configs/bench_$method.py" scenario=OPclass \
                old_config=bench_old_class30 feature_save="$features" $common $init \
                output="$here/$method$end")
        done
    done
done

$PYTHON eval/benchmark.py "$OUT" -d "$IJBC" --far "$FAR"
