"""Where the work runs: storage, settings at the door, Ray workers. The only package that imports ray."""

import os

# Threads that compute must not spin for long while they wait for each other: threads that decode share their cores, and a
# single other busy program makes endless spinning ten times slower. A few microseconds are worth it: steps of small images
# were seen to be a quarter faster than without. OpenMP reads this when torch is loaded, so it stands first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
