"""GPU kernels in Triton; imported only where triton is installed. ``compile.CASES`` lists how each is compiled."""
