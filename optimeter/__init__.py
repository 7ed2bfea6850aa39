"""Optimeter: what an optimizer costs and what it buys.

    from optimeter import OptimizerMonitor

This folder holds the package's rooms by links: the rooms themselves stand at the top of the repository.
"""
