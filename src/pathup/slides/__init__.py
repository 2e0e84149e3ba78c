"""Pixels in and out: read slides and region images by physical scale, write large images."""
