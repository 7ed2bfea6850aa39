"""Measuring: the monitor, the memory ledger, devices, the ways to measure, records, jobs. Hydra is not known here."""
