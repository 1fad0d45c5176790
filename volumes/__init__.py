"""Stacks and zarr: read and written slice by slice, and what a prediction keeps on disk."""
