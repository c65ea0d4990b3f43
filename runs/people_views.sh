#!/usr/bin/env bash
# People, from half of them to all, by every method, in minutes on two cores.
#
#   bash runs/people_views.sh SEEDS="0 1 2"
#
# The people are drawn (tools/make_people.py), 30 to train on and 30 others to search for, seen by six
# cameras and laid out as Market-1501. The table is work_dirs/people_views/retrieval.md.
#
# What runs/images.sh takes, too: RUN="..." OLD_EXTRA="..." NEW_EXTRA="..." MAP_EXTRA="...", JOBS=2
# (default: a run for each core), METHODS="..." (default: all). OUT=work_dirs/people_views is where
# everything goes.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
export OUT=$(realpath -m "${OUT:-work_dirs/people_views}")
cd "$(dirname "$0")/.."
export JOBS=${JOBS:-$(nproc)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((JOBS > 1 ? 1 : $(nproc)))}
$PYTHON tools/make_people.py "$OUT/data"
$PYTHON tools/split_dataset.py "$OUT/data/bounding_box_train" --by class --ratio 50 --out "$OUT"
TRAIN=$OUT/bounding_box_train.txt TEST=$OUT/data PROTOCOL=people \
    OLD=configs/people_views_old_class50.py NEW=configs/people_views_new_class100.py \
    SEEDS=${SEEDS:-0 1 2} METHODS=${METHODS:-$(echo methods/*/configs/people_views_*.py)} \
    bash runs/images.sh
