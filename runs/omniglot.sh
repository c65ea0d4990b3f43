#!/usr/bin/env bash
# Omniglot, from half of the characters to all, by every method, in minutes on two cores.
#
#   bash runs/omniglot.sh SOURCE=../shared/data/omniglot_small SEEDS="0 1 2"
#
# Trained on 15 of the 20 drawers of each character, searched leave-one-out among the drawings of the
# other 5. The table is work_dirs/omniglot/retrieval.md.
#
# What runs/images.sh takes, too: RUN="..." OLD_EXTRA="..." NEW_EXTRA="..." MAP_EXTRA="...", JOBS=2
# (default: a run for each core), METHODS="..." (default: all). OUT=work_dirs/omniglot is where
# everything goes.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
SOURCE=$(realpath -m "${SOURCE:-../shared/data/omniglot_small}")
export OUT=$(realpath -m "${OUT:-work_dirs/omniglot}")
cd "$(dirname "$0")/.."
export JOBS=${JOBS:-$(nproc)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((JOBS > 1 ? 1 : $(nproc)))}
$PYTHON tools/unpack.py "$SOURCE" --out "$OUT/data"
$PYTHON tools/split_dataset.py "$OUT/data" --by data --ratio 75 --out "$OUT"  # file k is drawer k's
for percent in 50 75; do  # 75: for configs/omniglot_chain.py
    $PYTHON tools/split_dataset.py "$OUT/train_part_75_data.txt" --by class --ratio $percent --out "$OUT"
done
TRAIN=$OUT/train_part_75_data.txt TEST=$OUT/train_part_25_data.txt OLD=configs/omniglot_old_class50.py \
    NEW=configs/omniglot_new_class100.py SEEDS=${SEEDS:-0 1 2} \
    METHODS=${METHODS:-$(echo methods/*/configs/omniglot_*.py)} bash runs/images.sh
