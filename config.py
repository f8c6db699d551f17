"""The representation that all steps share, and the network of the reference implementation.

What a run varies (SNR, context, learning rate, ...) is a flag of the command that uses it.
"""

# Audio and its spectrogram; n_window and n_overlap count samples.
sample_rate = 16000  # Hz; every input is resampled to it
n_window = 512  # samples of a frame: 32 ms
n_overlap = 256  # samples shared by neighbouring frames: a new frame every 16 ms
log_epsilon = 1e-8  # added to a magnitude before its logarithm is taken

# The network of [1] as the reference implementation has it.
n_hidden_layers = 3
n_hidden_units = 2048
dropout = 0.2  # share of hidden units switched off at each training step
loss = "mean_absolute_error"  # on scaled log magnitudes
