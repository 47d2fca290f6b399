"""Files: weights, data sets and checkpoints, each either whole or not there."""
