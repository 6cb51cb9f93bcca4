"""The loop of a training, its options, and the files that it leaves."""
