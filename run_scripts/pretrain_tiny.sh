#!/usr/bin/env bash
# Pre-train hubert_tiny, the small encoder of the package, as HuBERT was: masked prediction of clusters
# of MFCC, then, again from the initial weights, of clusters of the second layer. Two hours of speech,
# synthesised with another seed than the demo's. About 15 minutes on two cores.
#
#   bash run_scripts/pretrain_tiny.sh [FOLDER]       # .pretrain; writes FOLDER/hubert_tiny.pt
#
# A finished step is not repeated. Seeds are fixed; another processor may round differently.
# run_scripts/pretrain_tiny.log has the losses behind the file in the package.
set -euo pipefail
folder=${1:-.pretrain}
cd "$(dirname "$0")/.."
source run_scripts/setup.sh dev
export OMP_NUM_THREADS=1
mkdir -p "$folder"
cd "$folder"

# The convolutional features are large: fairseq's weight of 10 for their penalty would dominate.
settings="device=cpu,,optimizer.lr=3e-3,,optimizer.betas=[0.9,0.98],,scheduler.num_warmup_steps=50"
settings+=",,runner.gradient_clipping=1.0,,runner.log_step=50,,runner.eval_step=100"
settings+=",,runner.save_step=100,,runner.num_workers=0,,runner.test_last=false,,specaug=null"
settings+=",,ssl.test_splits=[dev],,ssl.downstream_expert.datarc.num_workers=0"
settings+=",,ssl.downstream_expert.datarc.train_batch_seconds=60"
settings+=",,ssl.downstream_expert.lossrc.loss_weights=[0.001]"

make_labels() {  # FOLDER FLAGS...: of the corpus and of another one, for dev
    local labels=$1
    shift
    [ -f "$labels/dev.km" ] && return
    if [ ! -f "$labels/train.km" ]; then
        rm -rf "$labels"  # of an interrupted run
        s3prl-mtl cluster "$labels" --audio corpus --clusters 100 "$@"
    fi
    s3prl-mtl cluster "$labels" --audio dev --split dev --centers "$labels/centers.npz" "${@:3}"
}

pretrain() {  # RUN LABELS
    s3prl-mtl train -u hubert_tiny -k initial.pt -d ssl -p "$1" -a --steps 600 \
        -o "$settings,,ssl.downstream_expert.datarc.path=$2"
}

s3prl-mtl make-corpus corpus --size mini --seed 1
s3prl-mtl make-corpus dev --size tiny --seed 2
python -m s3prl_mtl.upstreams.hubert.tiny initial.pt
make_labels labels1 --features mfcc
pretrain iteration1 labels1
make_labels labels2 --features layer:2 --run iteration1
pretrain iteration2 labels2
s3prl-mtl export iteration2 --format fairseq -o hubert_tiny.pt
sha256sum hubert_tiny.pt
