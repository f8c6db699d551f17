"""Enhance a 16 kHz mono wave with an exported model of the recipe `default`, without the pipeline.

python onnx_example.py MODEL.onnx NOISY.wav ENHANCED.wav; the recording is held as a whole, 45 MB
a minute. Left out is what speech_enhancement/network_input.py does for a constant offset, and for
recordings that end below 7.5 kHz.
"""

import json
import sys

import numpy as np
import onnxruntime
import soundfile

network = onnxruntime.InferenceSession(sys.argv[1])
metadata = network.get_modelmeta().custom_metadata_map
about = {name: json.loads(text) for name, text in metadata.items()}
recipe, every = about["recipe"]["input"], about["frames_per_estimate"]
epsilon = about["log_epsilon"]
wave, rate = soundfile.read(sys.argv[2])
assert rate == about["sample_rate"] and wave.ndim == 1 and recipe["noise_estimate"] == "percentiles"
assert about["recipe"]["network"]["kind"] == "window"

n_window, n_hop = about["n_window"], about["n_window"] - about["n_overlap"]
padded = np.pad(wave, (0, max(n_window - len(wave), -(len(wave) - n_window) % n_hop)))
window = np.hamming(n_window)
spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, n_window)[::n_hop] * window)
spectrum /= np.sqrt(np.sum(window**2))
log, power = np.log(np.abs(spectrum) + epsilon), np.mean(np.abs(spectrum) ** 2, axis=1)

n_frames = len(spectrum)
width = min(n_frames, round(recipe["level_window_s"] * rate / n_hop))  # frames of an estimate
starts = np.clip(np.arange(0, n_frames, every) + every // 2 - width // 2, 0, n_frames - width)
levels, statistics, least = [], [], []
for start in starts:
    part = slice(start, start + width)
    least.append(1e-6 * power[part].max())
    heard = power[part] >= least[-1]  # frames of digital silence do not count
    levels.append(np.log(np.mean(power[part][heard]) + epsilon**2) / 2)
    ranks = [round(percent / 100 * (heard.sum() - 1)) for percent in recipe["percentiles"]]
    statistics.append(np.sort(log[part][heard], axis=0)[ranks])
levels, least = np.array(levels), np.array(least)
statistics = np.maximum(np.array(statistics) - levels[:, None, None], -about["floor"])
of_frame = np.arange(n_frames) // every
frames = np.maximum(log - levels[of_frame, None], -about["floor"])
middle = len(recipe["percentiles"]) // 2
frames = np.where((power < least[of_frame])[:, None], statistics[of_frame, middle], frames)
frames = np.pad(frames, ((recipe["n_concat"] // 2,) * 2, (0, 0)), mode="edge")
inputs = {"frames": frames, "statistics": statistics[of_frame]}
inputs = {name: values.astype(np.float32) for name, values in inputs.items()}
mask = network.run(["mask"], inputs)[0]

enhanced, divisor = np.zeros(len(padded)), np.zeros(len(padded))
for index, frame in enumerate(np.fft.irfft(mask * spectrum) * np.sqrt(np.sum(window**2))):
    enhanced[index * n_hop :][:n_window] += frame
    divisor[index * n_hop :][:n_window] += window
soundfile.write(sys.argv[3], (enhanced / divisor)[: len(wave)], rate, subtype="FLOAT")
