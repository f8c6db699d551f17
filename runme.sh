#!/usr/bin/env bash
# DNN regression speech enhancement from an empty machine to the PESQ table.
#
#   ./runme.sh [--visualize]      --visualize also draws the spectrograms of each test file
#
# Set from the environment what is to differ, for example MINIDATA=0 TR_SPEECH_DIR=... ./runme.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

visualize=()
case "${1:-}" in
    "") ;;
    --visualize) visualize=(--visualize) ;;
    *) echo "runme.sh: expected no argument or --visualize, found $1" >&2; exit 2 ;;
esac

MINIDATA=${MINIDATA:-1}              # 1: the recordings in mini_data/; 0: your own folders
WORKSPACE=${WORKSPACE:-workspace}    # folder of all intermediate files and results
if [ "$MINIDATA" = 1 ]; then
    TR_SPEECH_DIR=${TR_SPEECH_DIR:-mini_data/train_speech}
    TR_NOISE_DIR=${TR_NOISE_DIR:-mini_data/train_noise}
    TE_SPEECH_DIR=${TE_SPEECH_DIR:-mini_data/test_speech}
    TE_NOISE_DIR=${TE_NOISE_DIR:-mini_data/test_noise}
    ITERATION=${ITERATION:-1000}     # training steps
else
    for name in TR_SPEECH_DIR TR_NOISE_DIR TE_SPEECH_DIR TE_NOISE_DIR; do
        [ -n "${!name:-}" ] || { echo "runme.sh: MINIDATA=0 needs $name, a folder of waves; set it" >&2; exit 2; }
    done
    ITERATION=${ITERATION:-10000}
fi
TR_SNR=${TR_SNR:-0}                  # dB
TE_SNR=${TE_SNR:-0}                  # dB
MAGNIFICATION=${MAGNIFICATION:-2}    # noises for each training speech
N_CONCAT=${N_CONCAT:-7}              # frames in a context window
N_HOP=${N_HOP:-3}                    # frames from one context window to the next
LEARNING_RATE=${LEARNING_RATE:-1e-4}
case "$ITERATION" in "" | *[!0-9]* | 0*) echo "runme.sh: expected a positive integer as ITERATION, found '$ITERATION'" >&2; exit 2 ;; esac
interval=$(( ITERATION < 10 ? 1 : ITERATION / 10 ))  # of evaluations

# Run a step; stop with its name when it fails.
step() {
    printf '\n== %s\n' "$1"
    shift
    "$@" || { status=$?; echo "runme.sh: stopped, this step failed with status $status: $*" >&2; exit "$status"; }
}

. ./setup.sh
setup_environment requirements.txt
PYTHON=$PYTHON step "Build the ITU-T P.862 program ./pesq" pesq_tool/build.sh

# Which speech is mixed with which part of which noise.
step "Training mixtures" "$PYTHON" prepare_data.py create_mixture_csv --workspace "$WORKSPACE" \
    --speech_dir "$TR_SPEECH_DIR" --noise_dir "$TR_NOISE_DIR" --data_type train --magnification "$MAGNIFICATION"
step "Test mixtures" "$PYTHON" prepare_data.py create_mixture_csv --workspace "$WORKSPACE" \
    --speech_dir "$TE_SPEECH_DIR" --noise_dir "$TE_NOISE_DIR" --data_type test

# Mix at the SNR; spectra of mixture and clean speech.
step "Training features" "$PYTHON" prepare_data.py calculate_mixture_features --workspace "$WORKSPACE" \
    --speech_dir "$TR_SPEECH_DIR" --noise_dir "$TR_NOISE_DIR" --data_type train --snr "$TR_SNR"
step "Test features" "$PYTHON" prepare_data.py calculate_mixture_features --workspace "$WORKSPACE" \
    --speech_dir "$TE_SPEECH_DIR" --noise_dir "$TE_NOISE_DIR" --data_type test --snr "$TE_SNR"

# Context windows of log magnitudes as input, the clean centre frame as target.
step "Pack the training features" "$PYTHON" prepare_data.py pack_features --workspace "$WORKSPACE" \
    --data_type train --snr "$TR_SNR" --n_concat "$N_CONCAT" --n_hop "$N_HOP"
step "Pack the test features" "$PYTHON" prepare_data.py pack_features --workspace "$WORKSPACE" \
    --data_type test --snr "$TE_SNR" --n_concat "$N_CONCAT" --n_hop "$N_HOP"

# Mean and standard deviation of each frequency bin of the training mixtures.
step "Scaler" "$PYTHON" prepare_data.py compute_scaler --workspace "$WORKSPACE" --data_type train --snr "$TR_SNR"

# Train from random weights, and draw the losses.
step "Train" "$PYTHON" main_dnn.py train --workspace "$WORKSPACE" --tr_snr "$TR_SNR" --te_snr "$TE_SNR" \
    --lr "$LEARNING_RATE" --n_iterations "$ITERATION" --eval_every "$interval"
step "Training curve" "$PYTHON" evaluate.py plot_training_stat --workspace "$WORKSPACE" --tr_snr "$TR_SNR" \
    --bgn_iter 0 --fin_iter $((ITERATION + 1)) --interval_iter "$interval"

# Enhance the test mixtures.
step "Enhance" "$PYTHON" main_dnn.py inference --workspace "$WORKSPACE" --tr_snr "$TR_SNR" --te_snr "$TE_SNR" \
    --n_concat "$N_CONCAT" --iteration "$ITERATION" ${visualize[@]+"${visualize[@]}"}

# Score them against the clean speech.
step "Score" "$PYTHON" evaluate.py calculate_pesq --workspace "$WORKSPACE" --speech_dir "$TE_SPEECH_DIR" --te_snr "$TE_SNR"
step "PESQ, raw P.862 MOS" "$PYTHON" evaluate.py get_stats --workspace "$WORKSPACE" --te_snr "$TE_SNR"

printf '\nEnhanced waves: %s/enh_wavs   Scores: %s/scores   Pictures: %s/figures\n' "$WORKSPACE" "$WORKSPACE" "$WORKSPACE"
