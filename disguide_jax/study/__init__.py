"""Studies of many runs, benchmarks, and the numbers of the authors' code."""
