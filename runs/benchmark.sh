#!/usr/bin/env bash
# Every method in every scenario, side by side, on any RecordIO; one table at the end.
#
#   bash runs/benchmark.sh DATA=../shared/data/lfw IJBC=../shared/data/lfw_ijbc \
#       BIN=../shared/data/lfw/lfw_devtest.bin SCENARIOS="OPclass EXdata" METHODS=all SEEDS="0 1 2"
#
# Per scenario and seed: the old model, the new network trained alone on the same shard, and the new
# network by each method. All new networks share NEW and differ in nothing but
# methods/*/configs/bench_<method>.py, of which there is one per method. What a method needs of the
# old model and of the network trained alone is made before it. A method may map the old gallery
# instead of training a network: it gets MAP in place of NEW. What can't work is refused at the start;
# a finished run is kept, a killed one continues.
#
#   OUT=work_dirs/benchmark   where everything goes      JOBS=1   runs at a time
#   RUN="torchrun --nproc_per_node=8"                    how a training is started
#   OLD="network=r18 ..." NEW="network=r50 ..." MAP=""   config values, below are the defaults
#   FAR=1e-2                  of the table
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
: "${DATA:?set DATA to a .rec file or the folder of train.rec}" "${IJBC:?set IJBC to the folder that contains IJBC/}"
export OUT=${OUT:-work_dirs/benchmark} JOBS=${JOBS:-1} FAR=${FAR:-1e-2}
export RUN=${RUN:-$PYTHON}
SCENARIOS=${SCENARIOS:-OPclass OPdata EXclass EXdata} METHODS=${METHODS:-all} SEEDS=${SEEDS:-0 1 2}
whole_numbers SEEDS JOBS
OLD=${OLD:-network=demo_w16 embedding_size=128 batch_size=64 num_epoch=4}
NEW=${NEW:-network=demo_w32 embedding_size=128 batch_size=32 num_epoch=16 margin_list=(1,.3,0) scale=16.0}
DATA=$(realpath "$DATA") IJBC=$(realpath "$IJBC") BIN=${BIN:+$(realpath "$BIN")} OUT=$(realpath -m "$OUT")
cd "$(dirname "$0")/.."
CONFIGS=""
[[ $METHODS == all ]] && METHODS=$(basename -s .py methods/*/configs/bench_*.py | sed s/^bench_//)
for method in $METHODS; do
    CONFIGS+=" $(compgen -G "methods/*/configs/bench_$method.py")" || fail "no method $method" \
        "those with a methods/*/configs/bench_<method>.py can be run"
done
[[ -d $DATA ]] && stem=train || stem=$(basename "$DATA" .rec)
PARTS="$OUT/data/$stem.rec"   # its parts lie there; the whole is DATA
# a map leads to the width of the new network
MAP="$(tr ' ' '\n' <<< "$NEW" | grep ^embedding_size= || true) ${MAP:-} resume=True"
export OLD="$OLD resume=True" NEW="$NEW resume=True" MAP CONFIGS DATA OUT PARTS

old_kind() { echo "${1:2}"; }                                # OPclass -> class
rec_of() { [[ $1 == OP* ]] && echo "$PARTS" || echo "$DATA"; }  # what the new model sees is cut from
new_shard() { [[ $1 == OP* ]] && echo "${1:2}70" || echo "${1:2}100"; }

train_old() {  # kind seed
    local here="$OUT/$1/seed$2"
    $RUN train_old.py "configs/bench_old_${1}30.py" rec="$PARTS" $OLD seed="$2" output="$here/old"
}

train_alone() {  # scenario seed
    $RUN train_old.py configs/bench_alone_class100.py shard="$(new_shard "$1")" rec="$(rec_of "$1")" \
        $NEW seed="$((1000 + $2))" output="$OUT/$1/seed$2/alone"
}

upgrade() {  # scenario seed: what says who follows whom
    local kind; kind=$(old_kind "$1")
    echo "scenario=$1 old_config=bench_old_${kind}30 new_config=bench_alone_class100"
}

check() {  # scenario: can't it work? Prints the configs of methods that map the gallery
    $PYTHON tools/check_upgrade.py $CONFIGS --old "configs/bench_old_$(old_kind "$1")30.py" $OLD \
        --new configs/bench_alone_class100.py $NEW --set $(upgrade "$1") $NEW \
        --map-set $(upgrade "$1") $MAP --ijbc "$IJBC" ${BIN:+--bin "$BIN"} --far "$FAR" | tr '\n' ' '
}

make_artefacts() {  # scenario seed: what the methods need of both models
    local kind here; kind=$(old_kind "$1"); here="$OUT/$kind/seed$2"
    $PYTHON tools/make_artefacts.py $CONFIGS --set $(upgrade "$1") feature_save="$here/feature_save" \
        --model "configs/bench_old_${kind}30.py" rec="$(rec_of "$1")" $OLD output="$here/old" \
        --model configs/bench_alone_class100.py rec="$(rec_of "$1")" $NEW output="$OUT/$1/seed$2/alone"
}

train_new() {  # scenario method seed
    local config extra="rec=$(rec_of "$1") $NEW"
    config=$(compgen -G "methods/*/configs/bench_$2.py")
    [[ $MAPS == *" $config "* ]] && extra=$MAP
    cd "$(dirname "$config")/.."
    $RUN train.py "configs/bench_$2.py" $(upgrade "$1") $extra seed="$((1000 + $3))" \
        feature_save="$OUT/$(old_kind "$1")/seed$3/feature_save" output="$OUT/$1/seed$3/$2"
}

export -f train_old train_alone upgrade make_artefacts train_new old_kind new_shard rec_of
in_parallel() { xargs -P "$JOBS" -I{} bash -euc "{}"; }
started=$SECONDS
for scenario in $SCENARIOS; do
    [[ $scenario =~ ^(OP|EX)(class|data)$ ]] || fail "there is no scenario $scenario" \
        "SCENARIOS=\"OPclass OPdata EXclass EXdata\" are all"
    MAPS=" $(check "$scenario")"
done
export MAPS

$PYTHON tools/split_dataset.py "$DATA" --out "$OUT/data" --ratio 30
for seed in $SEEDS; do for scenario in $SCENARIOS; do
    echo "train_old $(old_kind "$scenario") $seed"; done; done | sort -u | in_parallel
for step in train_alone make_artefacts; do
    for seed in $SEEDS; do for scenario in $SCENARIOS; do
        echo "$step $scenario $seed"; done; done | in_parallel
done
for seed in $SEEDS; do for scenario in $SCENARIOS; do for method in $METHODS; do
    echo "train_new $scenario $method $seed"; done; done; done | in_parallel

$PYTHON eval/benchmark.py "$OUT" -d "$IJBC" ${BIN:+--bin "$BIN"} --far "$FAR"
echo "this call: $(((SECONDS - started) / 60)) minutes"
