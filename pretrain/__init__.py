"""Learn an image encoder from images without labels."""
