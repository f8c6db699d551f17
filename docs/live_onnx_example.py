"""Clean a recording frame by frame, as it would come, with a live model in ONNX and numpy alone.

python docs/live_onnx_example.py live.onnx noisy.wav clean.wav     # 16 kHz, mono
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
texts = session.get_modelmeta().custom_metadata_map
facts = {name: json.loads(text) for name, text in texts.items()}
n_window, n_overlap, epsilon = facts["n_window"], facts["n_overlap"], facts["log_epsilon"]
n_hop, lowest = n_window - n_overlap, facts["lowest_of_level"]
kept = np.exp(-n_hop / facts["sample_rate"] / facts["recipe"]["input"]["level_memory_s"])
hamming = np.hamming(n_window)
scale = np.sqrt(np.sum(hamming**2))
states = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
power, weight, loudest, mask = 0.0, 0.0, 0.0, np.ones((1, 1))
samples, wave, norm = np.zeros(n_window), np.zeros(n_window), np.zeros(n_window)


def clean(hop: np.ndarray) -> np.ndarray:
    """Take in the next 256 samples; return 256 enhanced ones, which came a hop before."""
    global power, weight, loudest, samples, states, mask, wave, norm
    samples = np.concatenate([samples[n_hop:], hop])
    spectrum = np.fft.rfft(samples * hamming / scale)
    of_frame = np.sum(np.abs(spectrum[lowest:]) ** 2) / (len(spectrum) - lowest)
    loudest = max(loudest, of_frame)
    if of_frame > facts["silence"] * loudest:  # digital silence changes nothing
        power, weight = kept * power + of_frame, kept * weight + 1
        level = np.log(power / max(weight, 1) + epsilon**2) / 2
        frame = np.log(np.abs(spectrum) + epsilon) - level
        frame[:lowest] = frame[lowest]
        frame = np.maximum(frame, -facts["floor"]).astype(np.float32)
        mask, *after = session.run(None, {"frames": frame[None], **states})
        states = dict(zip(states, after, strict=True))

    wave = np.append(wave[n_hop:], np.zeros(n_hop)) + np.fft.irfft(mask[0] * spectrum * scale)
    norm = np.append(norm[n_hop:], np.zeros(n_hop)) + hamming
    return wave[:n_hop] / norm[:n_hop]


audio, rate = soundfile.read(sys.argv[2])
padded = np.pad(audio, (0, n_hop + -len(audio) % n_hop))
samples[n_hop:] = padded[:n_hop]  # the first frame begins with the recording
hops = [clean(hop) for hop in padded[n_hop:].reshape(-1, n_hop)]
soundfile.write(sys.argv[3], np.concatenate(hops)[: len(audio)], rate, subtype="FLOAT")
