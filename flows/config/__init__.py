"""Experiment, sweep and study files: their fields, presets, loading with overrides."""
