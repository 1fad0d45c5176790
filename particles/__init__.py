"""Particles of a mask: components, sizes and shapes, and how sizes are distributed."""
