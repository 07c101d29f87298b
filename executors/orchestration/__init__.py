"""orchestration: kernels compiled by the fastest back-end, stitched into one program."""
