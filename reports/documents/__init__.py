"""The study of the five documents: their tables, their claims, and the evidence for them."""
