#!/usr/bin/env bash
# Every method in every scenario, side by side, on any RecordIO; one table at the end.
#
#   bash runs/benchmark.sh DATA=../shared/data/lfw IJBC=../shared/data/lfw_ijbc \
#       BIN=../shared/data/lfw/lfw_devtest.bin SCENARIOS="OPclass EXdata" METHODS=all SEEDS="0 1 2"
#
# Per scenario and seed: the old model, a paragon (the new network trained alone on the same shard)
# and the new network by each method. All new networks share NEW and differ in nothing but
# methods/*/configs/bench_<method>.py, of which there is one per method. A finished run is kept, a
# killed one continues.
#
#   OUT=work_dirs/benchmark   where everything goes      JOBS=1   runs at a time
#   RUN="torchrun --nproc_per_node=8"                    how a training is started
#   OLD="network=r18 ..." NEW="network=r50 ..."          config values, below are the defaults
#   FAR=1e-2                  of the table
set -euo pipefail
for argument in "$@"; do
    [[ $argument =~ ^[A-Z]+= ]] || { echo "error: $argument is not NAME=value" >&2
        echo "  -> see the head of runs/benchmark.sh" >&2; exit 2; }
    export "${argument?}"
done
: "${DATA:?set DATA to a .rec file or the folder of train.rec}" "${IJBC:?set IJBC to the folder that contains IJBC/}"
export PYTHON=${PYTHON:-python} OUT=${OUT:-work_dirs/benchmark} JOBS=${JOBS:-1} FAR=${FAR:-1e-2}
export RUN=${RUN:-$PYTHON}
SCENARIOS=${SCENARIOS:-OPclass OPdata EXclass EXdata} METHODS=${METHODS:-all} SEEDS=${SEEDS:-0 1 2}
OLD=${OLD:-network=demo_w16 embedding_size=128 batch_size=64 num_epoch=4}
NEW=${NEW:-network=demo_w32 embedding_size=128 batch_size=32 num_epoch=16 margin_list=(1,.3,0) scale=16.0}
DATA=$(realpath "$DATA") IJBC=$(realpath "$IJBC") BIN=${BIN:+$(realpath "$BIN")} OUT=$(realpath -m "$OUT")
cd "$(dirname "$0")/.."
[[ $METHODS == all ]] && METHODS=$(basename -s .py methods/*/configs/bench_*.py | sed s/^bench_//)
for method in $METHODS; do
    compgen -G "methods/*/configs/bench_$method.py" > /dev/null || { echo "error: no method $method" >&2
        echo "  -> those with a methods/*/configs/bench_<method>.py can be run" >&2; exit 2; }
done
[[ -d $DATA ]] && stem=train || stem=$(basename "$DATA" .rec)
PARTS="$OUT/data/$stem.rec"   # its parts lie there; the whole is DATA
export OLD="$OLD resume=True" NEW="$NEW resume=True" DATA OUT PARTS

old_kind() { echo "${1:2}"; }                                # OPclass -> class
rec_of() { [[ $1 == OP* ]] && echo "$PARTS" || echo "$DATA"; }  # what the new model sees is cut from
new_shard() { [[ $1 == OP* ]] && echo "${1:2}70" || echo "${1:2}100"; }

train_old() {  # kind seed
    local here="$OUT/$1/seed$2"
    $RUN train_old.py "configs/bench_old_${1}30.py" rec="$PARTS" $OLD seed="$2" output="$here/old"
}

make_artefacts() {  # scenario seed: what the old model says of the new one's images
    local kind shard here
    kind=$(old_kind "$1"); shard=$(new_shard "$1"); here="$OUT/$kind/seed$2"
    local sd=(--SD "bench_old_$shard") saved=(--feature-save "$here/feature_save")
    $PYTHON tools/extract_features.py "configs/bench_old_${kind}30.py" "${sd[@]}" rec="$(rec_of "$1")" $OLD \
        output="$here/old" feature_save="$here/feature_save"
    for tool in average_features denoise class_statistics; do
        $PYTHON tools/$tool.py "${sd[@]}" "${saved[@]}"
    done
}

train_new() {  # scenario method seed
    local kind shard config
    kind=$(old_kind "$1"); shard=$(new_shard "$1")
    local common=(rec="$(rec_of "$1")" $NEW seed="$((1000 + $3))" output="$OUT/$1/seed$3/$2")
    if [[ $2 == paragon ]]; then
        $RUN train_old.py configs/bench_alone.py shard="$shard" "${common[@]}"
        return
    fi
    config=$(compgen -G "methods/*/configs/bench_$2.py")
    cd "$(dirname "$config")/.."
    $RUN train.py "configs/bench_$2.py" scenario="$1" old_config="bench_old_${kind}30" \
        feature_save="$OUT/$kind/seed$3/feature_save" "${common[@]}"
}

export -f train_old make_artefacts train_new old_kind new_shard rec_of
in_parallel() { xargs -P "$JOBS" -I{} bash -euc "{}"; }
started=$SECONDS

$PYTHON tools/split_dataset.py "$DATA" --out "$OUT/data" --ratio 30
for seed in $SEEDS; do for scenario in $SCENARIOS; do
    echo "train_old $(old_kind "$scenario") $seed"; done; done | sort -u | in_parallel
for seed in $SEEDS; do for scenario in $SCENARIOS; do
    echo "make_artefacts $scenario $seed"; done; done | in_parallel
for seed in $SEEDS; do for scenario in $SCENARIOS; do for method in paragon $METHODS; do
    echo "train_new $scenario $method $seed"; done; done; done | in_parallel

$PYTHON eval/benchmark.py "$OUT" -d "$IJBC" ${BIN:+--bin "$BIN"} --far "$FAR"
echo "this call: $(((SECONDS - started) / 60)) minutes"
