"""The demo's scenes."""
