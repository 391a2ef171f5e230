"""Measurements beside other libraries, one command each: python -m benchmarks.inference --quick, from the root."""
