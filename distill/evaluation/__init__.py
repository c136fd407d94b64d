"""Evaluation: accuracy over all processes, on the images as each model sees them."""
