"""Where the work runs: storage, settings at the door, Ray workers. The only package that imports ray."""
