"""Synthetic materials with known truth, and the scanner that makes slices of a tomogram of them."""
