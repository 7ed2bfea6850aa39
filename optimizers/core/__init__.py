"""What every optimizer here is built on.

`shell` walks parameters, keeps their state and resumes exactly; `storage` says how a moment rests between steps;
`quantize` gives its codes of 8 and 4 bits; `factored` keeps a second moment as row and column means; `arguments` are
those that optimizers share, and what each must be.
"""
