"""Measuring synthetic tissue beside real tissue."""
