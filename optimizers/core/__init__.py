"""What the algorithms share: the shell, how moments rest, 8-bit codes, factors, and parts of the larger ones."""
