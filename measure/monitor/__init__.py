"""What watches a training loop: OptimizerMonitor and what it looks with."""
