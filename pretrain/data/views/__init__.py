"""Random views of images: what is drawn, and what host and device make of it."""
