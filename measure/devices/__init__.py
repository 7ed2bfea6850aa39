"""What a device can tell: stamps in time, its allocator, its names."""
