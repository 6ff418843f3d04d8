"""Task models for other programs, each kind with what its users expect there."""
