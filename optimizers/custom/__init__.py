"""Parts of CustomAdamW: the nine techniques as pure functions, and the pairing of LoRA's factors."""
