"""Predictions of a trained run for audio files and waveforms."""
