#!/usr/bin/env bash
# An upgrade on images other than faces: old model, new model, every method, one table at the end.
#
#   bash runs/images.sh TRAIN=work_dirs/x/train.txt TEST=work_dirs/x/test.txt OUT=work_dirs/x \
#       OLD=configs/x_old_class50.py NEW=configs/x_new_class100.py \
#       METHODS="methods/OpenBCT/configs/x_l2.py methods/BT2/configs/x_bt2.py" SEEDS="0 1 2"
#
# TRAIN has been split (tools/split_dataset.py), OLD's shard lies beside it. OLD and NEW are trained
# alone; what the methods need of both is stored. A method may map the old gallery instead of training
# a network. What can't work is refused at the start; a finished run is kept, a killed one continues.
#
#   RUN="torchrun --nproc_per_node=8"   how a training is started      JOBS=1   runs at a time
#   OLD_EXTRA="lr=0.1 ..."              key=value for the old model
#   NEW_EXTRA="..." MAP_EXTRA="..."     for the new ones, for maps of the gallery
#   METRIC=cosine                       or l2: how the searches compare
#   PROTOCOL=classes                    TEST is an image set, searched leave-one-out. people: it is the
#                                       folder of Market-1501; else that of a gnd_<PROTOCOL>.pkl,
#                                       whose queries are cropped by their boxes
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
: "${TRAIN:?set TRAIN to the training set}" "${TEST:?set TEST to the images to search among}"
: "${OLD:?set OLD to a config}" "${NEW:?set NEW to a config}" "${METHODS:?set METHODS to configs}"
export OUT=${OUT:?set OUT to a folder} JOBS=${JOBS:-1}
export RUN=${RUN:-$PYTHON} OLD_EXTRA="${OLD_EXTRA:-} resume=True" NEW_EXTRA="${NEW_EXTRA:-} resume=True"
export MAP_EXTRA="${MAP_EXTRA:-} resume=True"
export METRIC=${METRIC:-cosine} SEEDS=${SEEDS:-0}
whole_numbers SEEDS JOBS
[[ $METRIC == cosine || $METRIC == l2 ]] || fail "METRIC=$METRIC is no metric" "METRIC=cosine or l2"
case ${PROTOCOL:=classes} in
    classes) SEARCH="eval/retrieval.py --leave-one-out --data" CHECK="--images" ;;
    people) SEARCH="eval/reid.py" CHECK="--reid" ;;
    *) SEARCH="eval/landmarks.py --boxes --data $PROTOCOL" CHECK="--landmarks $PROTOCOL" ;;
esac
export SEARCH
TRAIN=$(realpath -m "$TRAIN") TEST=$(realpath -m "$TEST") OUT=$(realpath -m "$OUT")
export TRAIN TEST OLD NEW OUT
cd "$(dirname "$0")/.."
for config in "$OLD" "$NEW" $METHODS; do
    [[ -f $config ]] || fail "there is no config $config" "paths start at the repository's root"
done
[[ -e $TRAIN ]] || fail "there is no training set $TRAIN" "make it: tools/split_dataset.py"

stem() { basename "$1" .py; }
name_of() { local name; name=$(stem "$1"); echo "${name#"$(stem "$OLD" | sed 's/old_class.*//')"}"; }
# the names beside the methods' ones in a seed's folder
twice=$({ printf '%s\n' old alone feature_save retrieval methods
    for config in $METHODS; do name_of "$config"; done; } | sort | uniq -d | tr '\n' ' ')
[[ -z $twice ]] || fail "METHODS has more than one, or an old one, called $twice" "rename a config"
# the configs of methods that map the gallery
MAPS=" $($PYTHON tools/check_upgrade.py $METHODS --old "$OLD" $OLD_EXTRA --new "$NEW" $NEW_EXTRA \
    --set rec="$TRAIN" $NEW_EXTRA --map-set $MAP_EXTRA $CHECK "$TEST" | tr '\n' ' ')"
maps_gallery() { [[ $MAPS == *" $1 "* ]]; }

train_alone() {  # seed
    local here="$OUT/seed$1"
    $RUN train_old.py "$OLD" rec="$TRAIN" $OLD_EXTRA seed="$1" output="$here/old"
    $RUN train_old.py "$NEW" rec="$TRAIN" $NEW_EXTRA seed="$((1000 + $1))" output="$here/alone"
    $PYTHON tools/make_artefacts.py $METHODS --set feature_save="$here/feature_save" --launch "$RUN" \
        --model "$OLD" rec="$TRAIN" $OLD_EXTRA output="$here/old" \
        --model "$NEW" rec="$TRAIN" $NEW_EXTRA output="$here/alone"
}

train_new() {  # config seed
    local here="$OUT/seed$2" extra="rec=$TRAIN $NEW_EXTRA"
    maps_gallery "$1" && extra=$MAP_EXTRA  # it sees no image
    $RUN "$(dirname "$(dirname "$1")")/train.py" "$1" $extra seed="$((1000 + $2))" \
        feature_save="$here/feature_save" output="$here/$(name_of "$1")"
}

evaluate() {  # seed
    local here="$OUT/seed$1" new=()
    local alone=("$TEST" -m_old "$here/old/model.pt" --metric "$METRIC" -o "$here/retrieval" --overwrite)
    local search="$RUN $SEARCH"
    for config in $METHODS; do
        maps_gallery "$config" || new+=("$here/$(name_of "$config")/model.pt")
    done
    # without a network of a method's own, the one trained alone is the new model
    $search "${alone[@]}" -m "${new[@]:-$here/alone/model.pt}" -m_alone "$here/alone/model.pt" \
        --dimensions leading --name methods --save_embeddings
    local gallery="$here/retrieval/methods_old_gallery.npy"  # where the queries are a set of their own
    [[ $PROTOCOL != classes ]] || gallery="$here/retrieval/methods_old.npy"
    for config in $METHODS; do
        maps_gallery "$config" || continue
        local name; name=$(name_of "$config")
        local mapped="$here/retrieval/${name}_mapped.npy" predicted=() order=(random)
        if grep -qx "config.uncertainty = True" "$here/$name/config.py"; then
            order+=("$here/retrieval/${name}_uncertainty.npy") predicted=(--uncertainty "${order[1]}")
        fi
        $PYTHON tools/transform_gallery.py "$gallery" "$mapped" \
            -m "$here/$name/model.pt" "${predicted[@]}" --overwrite
        $search "${alone[@]}" -m "$here/alone/model.pt" --name "$name" \
            --old-gallery "$mapped" --backfill "${order[@]}"
    done
}

export -f train_alone train_new evaluate maps_gallery stem name_of
export METHODS MAPS PROTOCOL
in_parallel() { xargs -P "$JOBS" -I{} bash -euc "{}"; }
started=$SECONDS
for seed in $SEEDS; do echo "train_alone $seed"; done | in_parallel
for seed in $SEEDS; do for config in $METHODS; do echo "train_new $config $seed"; done; done | in_parallel
for seed in $SEEDS; do echo "evaluate $seed"; done | in_parallel
$PYTHON eval/retrieval_table.py "$OUT" --minutes "$(((SECONDS - started + 30) / 60))"
