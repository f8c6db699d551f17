"""Enhancing the mixtures of the test set with a trained model."""

import os

from speech_enhancement.data.audio_files import read_audio, write_wave
from speech_enhancement.data.mixture_features import check_features
from speech_enhancement.data.mixtures import read_mixtures
from speech_enhancement.enhancement.blocks import enhance_with_all
from speech_enhancement.enhancement.enhance_audio import enhance_audio
from speech_enhancement.errors import InputError, require_file
from speech_enhancement.network.network import load_model
from speech_enhancement.progress import track
from speech_enhancement.workspace import enhanced_path, features_path, mixed_audio_path, model_path


def enhance_test_set(
    workspace: str,
    te_snr: float,
    training: str,
    iteration: int | str,
    n_concat: int | None = None,
    needs_features: bool = False,
) -> None:
    """Enhance every mixture of the test set with a trained model and the phase of the mixture.

    Writes enh_wavs/test/{te_snr}/SPEECH.NOISE.enh.wav, each exactly as long as its mixture.

    Working set: the network and one mixture.

    Args:
      workspace: folder with the model, the test mixture CSV and the mixed waves.
      te_snr: signal-to-noise ratio of the test mixtures in dB.
      training: name of the training's folders, as workspace.find_training returns it.
      iteration: which of the saved models, or "best".
      n_concat: frames in the model's window, as a check; None takes it from the model.
      needs_features: whether the feature files of the mixtures must be there too.
    Raises:
      InputError: a file is missing or damaged, or n_concat is not the model's.
    """
    mixtures = read_mixtures(workspace, "test")
    for mixture in mixtures:
        mixed_path = mixed_audio_path(workspace, "test", te_snr, mixture.name)
        require_file(mixed_path, "calculate_mixture_features")
        has_features = os.path.isfile(features_path(workspace, "test", te_snr, mixture.name))
        if needs_features or has_features:
            check_features(workspace, "test", te_snr, mixture)

    path = model_path(workspace, training, iteration)
    model, settings = load_model(path)
    trained = settings.recipe.input.n_concat
    if n_concat not in (None, trained):
        raise InputError(
            f"{path} was trained with n_concat {trained}, found --n_concat {n_concat}; leave it out"
        )

    for mixture in track(mixtures, len(mixtures), "mixtures"):
        mixed = read_audio(mixed_audio_path(workspace, "test", te_snr, mixture.name))
        if settings.recipe.n_looks > 1:
            enhanced = enhance_with_all([(model, settings)], mixed)
        else:
            enhanced = enhance_audio(model, settings, mixed)
        write_wave(enhanced_path(workspace, te_snr, mixture.name), enhanced)

    folder = os.path.dirname(enhanced_path(workspace, te_snr, ""))
    print(f"{len(mixtures)} enhanced waves -> {folder}")
