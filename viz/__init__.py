"""Pictures: slices, plots, the page of a run."""
