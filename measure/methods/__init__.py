"""The ways to measure, and the training loop that they share."""
