"""The representation that all steps share: sample rate and STFT.

What makes a model (inputs, network, loss, schedule) is a recipe in recipes/; what a run varies is a
flag.
"""

# Audio and its spectrogram; n_window and n_overlap count samples.
sample_rate = 16000  # Hz; every input is resampled to it
n_window = 512  # samples of a frame: 32 ms
n_overlap = 256  # samples shared by neighbouring frames: a new frame every 16 ms
log_epsilon = 1e-8  # added to a magnitude before its logarithm is taken

# What features, packed data and models say of themselves; a mismatch is an error.
stft_settings = {
    "sample_rate": sample_rate,
    "n_window": n_window,
    "n_overlap": n_overlap,
    "log_epsilon": log_epsilon,
}
