"""Readers of recorded data that models are trained on, in the file formats it is published in."""
