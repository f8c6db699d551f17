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
n_window, epsilon, floor = facts["n_window"], facts["log_epsilon"], -facts["floor"]
n_hop, lowest = n_window - facts["n_overlap"], facts["lowest_of_level"]
early = n_hop // 2  # samples by which the first look's frames begin before the second's
kept = np.exp(-n_hop / facts["sample_rate"] / facts["recipe"]["input"]["level_memory_s"])
hamming = np.hamming(n_window)
scale = np.sqrt(np.sum(hamming**2))
states = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
power, weight, loudest = np.zeros((3, 2, 1))  # of both looks
samples, mask = np.zeros(n_window + early), np.ones((2, 1))
wave, norm = np.zeros((2, 2, n_window + early))


def clean(hop: np.ndarray) -> np.ndarray:
    """Take in the next 256 samples; return 256 enhanced ones, which came 384 samples before."""
    global power, weight, loudest, samples, states, mask, wave, norm
    samples = np.append(samples[n_hop:], hop)
    looks = np.stack([samples[:n_window], samples[early:]])
    spectrum = np.fft.rfft(looks * hamming / scale)
    of_frame = np.mean(np.abs(spectrum[:, lowest:]) ** 2, axis=1, keepdims=True)
    loudest = np.maximum(loudest, of_frame)
    has_signal = of_frame > facts["silence"] * loudest  # digital silence changes nothing
    power = np.where(has_signal, kept * power + of_frame, power)
    weight = np.where(has_signal, kept * weight + 1, weight)
    if has_signal[0]:
        level = np.log(power / np.maximum(weight, 1) + epsilon**2) / 2
        frames = np.log(np.abs(spectrum) + epsilon) - level
        frames[:, :lowest] = frames[:, lowest, None]
        frames = np.where(has_signal, np.maximum(frames, floor), floor).astype(np.float32)
        mask, *after = session.run(None, {"frames": frames, **states})
        states = dict(zip(states, after, strict=True))
    else:
        mask = mask[[-1, -1]]

    cleaned = np.fft.irfft(mask * spectrum * scale) * hamming
    wave, norm = np.pad([wave[:, n_hop:], norm[:, n_hop:]], ((0, 0), (0, 0), (0, n_hop)))
    for look, first in enumerate((0, early)):
        wave[look, first : first + n_window] += cleaned[look]
        norm[look, first : first + n_window] += hamming**2
    return np.mean(wave[:, :n_hop] / np.maximum(norm[:, :n_hop], 1e-9), axis=0)


audio, rate = soundfile.read(sys.argv[2])
before = np.pad(audio, (early, 0), "reflect")  # the first look begins before the recording
padded = np.pad(before, (0, n_window - early + -len(before) % n_hop))
samples[n_hop:] = padded[: n_window + early - n_hop]
hops = padded[n_window + early - n_hop :].reshape(-1, n_hop)
enhanced = np.concatenate([clean(hop) for hop in hops])[early : early + len(audio)]
soundfile.write(sys.argv[3], enhanced, rate, subtype="FLOAT")
