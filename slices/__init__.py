"""Slices and masks in files: what they hold, which belong together, and who trains and tests."""
