"""Task models for other programs, each kind as its users expect it there."""
