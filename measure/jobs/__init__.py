"""What makes a list of runs: building from names, isolation, the sweep, its progress, the environment."""
