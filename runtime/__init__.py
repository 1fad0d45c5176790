"""What runs need to survive: command lines, run folders, resuming, processes and workers."""
