"""Where the work runs: storage, settings at the door, Ray workers. The only package that imports ray."""

import os

# Threads that compute must sleep, not spin, while they wait for each other: threads that decode share their cores, and a
# single other busy program makes spinning ten times slower. OpenMP reads this when torch is loaded, so it stands first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
