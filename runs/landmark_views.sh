#!/usr/bin/env bash
# Landmarks, from half of them to all, by every method, in minutes on two cores.
#
#   bash runs/landmark_views.sh SEEDS="0 1 2"
#
# The images are views of 20 landmarks, each warped from a single public-domain photograph
# (tools/make_landmark_views.py): easy, and no evidence of how well anything retrieves. They are laid
# out as GLDv2 (training) and Revisited Oxford (test: 40 queries, easy, hard and junk). The table is
# work_dirs/landmark_views/retrieval.md.
#
# What runs/images.sh takes, too: RUN="..." OLD_EXTRA="..." NEW_EXTRA="..." MAP_EXTRA="...", JOBS=2
# (default: a run for each core), METHODS="..." (default: all). OUT=work_dirs/landmark_views is where
# everything goes.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
export OUT=$(realpath -m "${OUT:-work_dirs/landmark_views}")
cd "$(dirname "$0")/.."
export JOBS=${JOBS:-$(nproc)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((JOBS > 1 ? 1 : $(nproc)))}
$PYTHON tools/make_landmark_views.py "$OUT/data"
$PYTHON tools/split_dataset.py "$OUT/data/gldv2/label_20.txt" --by class --ratio 50 --out "$OUT"
TRAIN=$OUT/label_20.txt TEST=$OUT/data/revisited PROTOCOL=landmarkviews \
    OLD=configs/landmark_views_old_class50.py NEW=configs/landmark_views_new_class100.py \
    SEEDS=${SEEDS:-0 1 2} METHODS=${METHODS:-$(echo methods/*/configs/landmark_views_*.py)} \
    bash runs/images.sh
