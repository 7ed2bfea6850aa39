"""What the workloads are made of.

`workload` is the base class; `manual` and `photographs` are data that every installation carries; `diffusion` makes
batches and a trained base of the photographs; `pretrained` loads weights that others trained; `cache` keeps what takes
a while to make.
"""
