"""Where a student's code runs: a bubblewrap sandbox with a warm process that forks kernels."""
