"""orchestration: which kernels compute a tensor program, so that their measured times sum to the least."""
