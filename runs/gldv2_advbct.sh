#!/usr/bin/env bash
# AdvBCT's table: GLDv2-clean, an old ResNet-18 on 30 % of the data, five methods, tested on ROxford5k,
# RParis6k and GLDv2. Wants GPUs: seven trainings of 30 epochs, six of them of 1.6 million images.
#
#   bash runs/gldv2_advbct.sh GLDV2=dataset/GLDv2 RETRIEVAL=dataset/ROxfordParis \
#       INIT_OLD=resnet18.pth INIT=resnet18.pth RUN="torchrun --nproc_per_node=4"
#
# GLDV2 holds train/, index/, test/ (a/b/c/<id>.jpg), label_81313.txt, index.csv and
# retrieval_solution_v2.1.csv; RETRIEVAL holds roxford5k/jpg, rparis6k/jpg and gnd_<name>.pkl. INIT_OLD and
# INIT are timm's ImageNet weights; without them networks start from drawn weights, and nothing is
# comparable with published figures.
#
#   ALLOCATION=EXclass   or EXdata, OPclass, OPdata: extended or open, by classes or by images
#   NEW=r18              or r50, with INIT=resnet50.pth: the new network
#   METHODS="..."        configs; default: AdvBCT, BCT, HotRefresh, LCE and UniBCT of that allocation
#   OUT=work_dirs/gldv2_advbct    where everything goes    SETS="roxford5k rparis6k gldv2"   of the tests
#   OLD_EXTRA="..." NEW_EXTRA="..."    key=value for the old model, for the new ones
#
# Published, mAP in % of RParis6k, ROxford5k and GLDv2, EXclass, r18: old 74.29, 54.34, 11.43; AdvBCT new/old
# 77.16, 54.82, 12.05, new/new 82.05, 64.51, 16.44; alone 81.15, 63.85, 16.48. The table is <OUT>/table.md.
set -euo pipefail
source "$(dirname "$0")/lib/start.sh"
GLDV2=$(realpath -m "${GLDV2:-$here/dataset/GLDv2}") OUT=$(realpath -m "${OUT:-work_dirs/gldv2_advbct}")
RETRIEVAL=$(realpath -m "${RETRIEVAL:-$here/dataset/ROxfordParis}")
RUN=${RUN:-torchrun --nproc_per_node=4} SETS=${SETS:-roxford5k rparis6k gldv2}
ALLOCATION=${ALLOCATION:-EXclass} NEW=${NEW:-r18}
OLD_EXTRA="${INIT_OLD:+init_from=$(realpath -m "${INIT_OLD:-}")} ${OLD_EXTRA:-} resume=True"
NEW_EXTRA="${INIT:+init_from=$(realpath -m "${INIT:-}")} ${NEW_EXTRA:-} resume=True"
[[ $ALLOCATION =~ ^(EX|OP)(class|data)$ ]] || fail "there is no ALLOCATION $ALLOCATION" \
    "EXclass, EXdata, OPclass or OPdata"
[[ $NEW == r18 || $NEW == r50 ]] || fail "NEW=$NEW is no network of this table" "NEW=r18 or NEW=r50"
begin_with "${INIT_OLD:-}" "${INIT:-}"
cd "$(dirname "$0")/.."
LISTS=$OUT/lists
case $ALLOCATION in
    EXclass) LIST=gldv2_train_new_100percent_class.txt ;;
    EXdata) LIST=gldv2_train_new_100percent_data.txt ;;
    OPclass) LIST=gldv2_train_new_70percent_class.txt ;;
    OPdata) LIST=gldv2_train_new_70percent_data.txt ;;
esac
KIND=${ALLOCATION:2}
OLD=configs/old_model.py; [[ $KIND == class ]] || OLD=configs/gldv2_r18_data30.py
if [[ -z ${METHODS:-} && $ALLOCATION$NEW == EXclassr18 ]]; then
    METHODS=$(echo methods/*/configs/new_*.py)
fi
METHODS=${METHODS:-$(echo methods/*/configs/"${ALLOCATION}_gldv2_r18_to_${NEW}"_*.py)}
where() { [[ $1 == gldv2 ]] && echo "$GLDV2" || echo "$RETRIEVAL"; }
for config in $METHODS; do
    [[ -f $config ]] || fail "there is no config $config" "paths start at the repository's root"
done
for name in $SETS; do
    $PYTHON tools/check_upgrade.py --landmarks "$name" "$(where "$name")"
done
$PYTHON tools/check_upgrade.py $METHODS --old $OLD num_classes=None $OLD_EXTRA \
    --new "configs/gldv2_${NEW}_alone.py" num_classes=None $NEW_EXTRA \
    --set rec="$LISTS/$LIST" num_classes=None old_model="$OUT/old_$KIND" $NEW_EXTRA

# 1. the old model's 30 % and the lists of the new ones
$PYTHON tools/split_dataset.py "$GLDV2/label_81313.txt" --split advbct --by "$KIND" --ratio 30 --out "$LISTS"
LIST=$LISTS/$LIST

# 2. the old model, and the new network alone
$RUN train_old.py $OLD rec="$LISTS/gldv2_train_old_30percent_$KIND.txt" num_classes=None $OLD_EXTRA \
    output="$OUT/old_$KIND"
$RUN train_old.py "configs/gldv2_${NEW}_alone.py" rec="$LIST" num_classes=None $NEW_EXTRA \
    output="$OUT/$ALLOCATION/alone_$NEW"

# 3. what the methods need of the old model; each method
$PYTHON tools/make_artefacts.py $METHODS --launch "$RUN" \
    --set rec="$LIST" num_classes=None old_model="$OUT/old_$KIND"
new=()
for config in $METHODS; do
    name=$(basename "$config" .py)
    $RUN "$(dirname "$(dirname "$config")")/train.py" "$config" rec="$LIST" num_classes=None \
        old_model="$OUT/old_$KIND" $NEW_EXTRA output="$OUT/$ALLOCATION/$name"
    new+=("$OUT/$ALLOCATION/$name/model.pt")
done

# 4. self and cross tests, and AdvBCT's figures over the sets
for name in $SETS; do
    $RUN eval/landmarks.py "$(where "$name")" --data "$name" -m "${new[@]}" \
        -m_old "$OUT/old_$KIND/model.pt" -m_alone "$OUT/$ALLOCATION/alone_$NEW/model.pt" \
        -o "$OUT/$ALLOCATION/tests" --name "$name" --overwrite
done
$PYTHON eval/landmarks_table.py "$OUT/$ALLOCATION/tests" -o "$OUT/table"
