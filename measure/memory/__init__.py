"""What counts memory: the ledger, its prediction on fake tensors, and peaks from live tensors."""
