"""The front door: one command for all packages, completion for shells, and the reference of all settings."""
