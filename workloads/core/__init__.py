"""What the workloads share: their base class, the texts and photographs they learn from, checkpoints, and a cache."""
