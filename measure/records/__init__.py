"""What a run leaves behind: the record, its folder, reading it back."""
