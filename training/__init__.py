"""A run, apart from its loop: its phases, their batches, how it is prepared, and how a phase fails."""
