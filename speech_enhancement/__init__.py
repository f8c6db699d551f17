"""DNN regression speech enhancement: all that the three scripts at the top import.

Imports point one way: config and spectrogram_to_wave, at the top level, <- the modules of this
folder <- data <- network <- training and enhancement; evaluation <- the modules of this folder and
data. Nothing imports the scripts.
"""
