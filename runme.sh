#!/usr/bin/env bash
# DNN regression speech enhancement from an empty machine to the PESQ table.
#
#   ./runme.sh [--visualize]      --visualize also draws the spectrograms of each test file
#
# Set from the environment what is to differ, for example MINIDATA=0 TR_SPEECH_DIR=... ./runme.sh
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" > /dev/null && pwd)  # also through a link

visualize=()
case "$*" in
    "") ;;
    --visualize) visualize=(--visualize) ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "runme.sh: expected no argument or --visualize, found $*" >&2; exit 2 ;;
esac

MINIDATA=${MINIDATA:-1}              # 1: the recordings in mini_data/; 0: your own folders
RECIPE=${RECIPE:-default}            # a recipe in recipes/, or a TOML file
case "$RECIPE" in                    # folder of all intermediate files and results
    default) WORKSPACE=${WORKSPACE:-workspace} ;;
    *) WORKSPACE=${WORKSPACE:-workspace_$(basename "$RECIPE" .toml)} ;;
esac
case "$RECIPE" in                    # mini data: training steps, noises a speech, frames between windows
    original) mini_iterations=1000 mini_rate="" mini_magnification=2 mini_hop=3 ;;
    *) mini_iterations=200 mini_rate=1e-4 mini_magnification=3 mini_hop=1 ;;
esac
ON_THE_FLY=${ON_THE_FLY:-0}          # 0: training mixtures are made once, before training; 1: while training
case "$MINIDATA" in
    1)  TR_SPEECH_DIR=${TR_SPEECH_DIR:-$here/mini_data/train_speech}
        TR_NOISE_DIR=${TR_NOISE_DIR:-$here/mini_data/train_noise}
        TE_SPEECH_DIR=${TE_SPEECH_DIR:-$here/mini_data/test_speech}
        TE_NOISE_DIR=${TE_NOISE_DIR:-$here/mini_data/test_noise}
        ITERATION=${ITERATION:-$mini_iterations}              # training steps
        LEARNING_RATE=${LEARNING_RATE:-$mini_rate}            # low: eleven seconds are soon learned by heart
        MAGNIFICATION=${MAGNIFICATION:-$mini_magnification}   # noises for each training speech
        N_HOP=${N_HOP:-$mini_hop} ;;                          # frames from one context window to the next
    0)  for name in TR_SPEECH_DIR TR_NOISE_DIR TE_SPEECH_DIR TE_NOISE_DIR; do
            [ -n "${!name:-}" ] || { echo "runme.sh: MINIDATA=0 needs $name, a folder of waves; set it" >&2; exit 2; }
        done
        MAGNIFICATION=${MAGNIFICATION:-2} ;;
    *)  echo "runme.sh: expected MINIDATA 0 or 1, found $MINIDATA" >&2; exit 2 ;;
esac
case "$ON_THE_FLY" in
    0 | 1) ;;
    *) echo "runme.sh: expected ON_THE_FLY 0 or 1, found $ON_THE_FLY" >&2; exit 2 ;;
esac
case "${ITERATION=}" in
    *[!0-9]* | 0*) echo "runme.sh: expected a positive integer as ITERATION, found '$ITERATION'" >&2; exit 2 ;;
esac
TE_SNR=${TE_SNR:-0}                  # dB
# TR_SNR (dB, one or several), N_CONCAT (frames in a context window), LEARNING_RATE and, on data of your own, ITERATION
# are the recipe's unless they are set.
n_concat=(${N_CONCAT:+--n_concat "$N_CONCAT"})
learning_rate=(${LEARNING_RATE:+--lr "$LEARNING_RATE"})

# Run a step; stop with its name when it fails.
step() {
    printf '\n== %s\n' "$1"
    shift
    "$@" || { status=$?; echo "runme.sh: stopped, this step failed with status $status: $*" >&2; exit "$status"; }
}

. "$here/setup.sh"
setup_environment requirements.txt
export PYTHON
of_recipe() { PYTHONPATH=$here "$PYTHON" -m speech_enhancement.recipe "$RECIPE" "$@"; }
read -r -a trained_at <<< "${TR_SNR:+--tr_snr $TR_SNR}"
[ -n "${TR_SNR:-}" ] || trained_at=($(of_recipe)) || exit 2
if [ "$ON_THE_FLY" = 0 ] && [ "${trained_at[0]}" != --tr_snr ]; then
    echo "runme.sh: recipe $RECIPE draws SNRs from a range; set TR_SNR to those to mix at, or ON_THE_FLY=1" >&2; exit 2
fi
ITERATION=${ITERATION:-$(of_recipe n_iterations)} || exit 2
interval=$((ITERATION < 10 ? 1 : ITERATION / 10))  # of evaluations
case $(of_recipe kind) in
    memory) N_HOP=${N_HOP:-1} ;;     # it needs every frame
    *) N_HOP=${N_HOP:-3} ;;
esac
step "Build the ITU-T P.862 program ./pesq" "$here/pesq_tool/build.sh"

# Which speech is mixed with which part of which noise; mix at the SNR; spectra of mixture and clean speech;
# context windows of log magnitudes as input, clean frames as target.
prepare() {  # prepare train|test SPEECH_DIR NOISE_DIR SNR...
    local data_type=$1 speech_dir=$2 noise_dir=$3 snr
    shift 3
    step "List the $data_type mixtures" "$PYTHON" "$here/prepare_data.py" create_mixture_csv --workspace "$WORKSPACE" \
        --speech_dir "$speech_dir" --noise_dir "$noise_dir" --data_type "$data_type" --magnification "$MAGNIFICATION"
    for snr in "$@"; do
        step "Mix the $data_type set at $snr dB" "$PYTHON" "$here/prepare_data.py" calculate_mixture_features \
            --workspace "$WORKSPACE" --speech_dir "$speech_dir" --noise_dir "$noise_dir" --data_type "$data_type" --snr "$snr"
        step "Pack its features" "$PYTHON" "$here/prepare_data.py" pack_features --workspace "$WORKSPACE" \
            --data_type "$data_type" --snr "$snr" --recipe "$RECIPE" --n_hop "$N_HOP" ${n_concat[@]+"${n_concat[@]}"}
    done
}
source=()  # of the training mixtures
if [ "$ON_THE_FLY" = 1 ]; then
    source=(--on_the_fly --speech_dir "$TR_SPEECH_DIR" --noise_dir "$TR_NOISE_DIR")
else
    prepare train "$TR_SPEECH_DIR" "$TR_NOISE_DIR" "${trained_at[@]:1}"
    # Mean and standard deviation of each frequency bin of the training mixtures.
    step "Compute the scaler" "$PYTHON" "$here/prepare_data.py" compute_scaler --workspace "$WORKSPACE" \
        --data_type train --snr "${trained_at[@]:1}"
fi
prepare test "$TE_SPEECH_DIR" "$TE_NOISE_DIR" "$TE_SNR"

# Train from random weights, and draw the losses.
step "Train" "$PYTHON" "$here/main_dnn.py" train --workspace "$WORKSPACE" --te_snr "$TE_SNR" --recipe "$RECIPE" \
    "${trained_at[@]}" ${source[@]+"${source[@]}"} ${learning_rate[@]+"${learning_rate[@]}"} \
    ${n_concat[@]+"${n_concat[@]}"} --n_iterations "$ITERATION" --eval_every "$interval"
step "Draw the training curve" "$PYTHON" "$here/evaluate.py" plot_training_stat --workspace "$WORKSPACE" \
    "${trained_at[@]}" --bgn_iter 0 --fin_iter $((ITERATION + 1))

# Enhance the test mixtures.
step "Enhance" "$PYTHON" "$here/main_dnn.py" inference --workspace "$WORKSPACE" "${trained_at[@]}" \
    --te_snr "$TE_SNR" --iteration "$ITERATION" ${n_concat[@]+"${n_concat[@]}"} ${visualize[@]+"${visualize[@]}"}

# Score them against the clean speech.
step "Score" "$PYTHON" "$here/evaluate.py" calculate_pesq --workspace "$WORKSPACE" --speech_dir "$TE_SPEECH_DIR" \
    --te_snr "$TE_SNR" --pesq "$here/pesq"
step "PESQ, raw P.862 MOS" "$PYTHON" "$here/evaluate.py" get_stats --workspace "$WORKSPACE" --te_snr "$TE_SNR"
step "Write the report" "$PYTHON" "$here/evaluate.py" report --workspace "$WORKSPACE" --te_snr "$TE_SNR" \
    --speech_dir "$TE_SPEECH_DIR"

printf '\nEnhanced waves: %s/enh_wavs   Scores: %s/scores   Pictures: %s/figures\n' "$WORKSPACE" "$WORKSPACE" "$WORKSPACE"
printf 'Look and listen: %s/report/index.html\n' "$WORKSPACE"
