"""Lesion classifiers: what synthetic tissue is worth to them."""
