"""One loop for every objective: configuration, optimiser, loop, checkpoints, log and plan."""
