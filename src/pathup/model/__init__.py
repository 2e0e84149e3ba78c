"""Prompts, components, the feature entropy loss and the pipeline."""
