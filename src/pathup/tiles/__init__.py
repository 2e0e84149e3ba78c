"""Tiles: taxonomy, annotations, sources, splits, cutting, and the folder of tiles that training reads."""
