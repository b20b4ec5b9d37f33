"""The pipeline: one module a stage, and what several stages share."""

import os

# Threads that wait for each other by spinning stall when another process takes a core: on two cores
# beside one busy process a training step took 10 times as long as with waiting by sleep. OpenMP reads
# this once, when torch is imported; whoever sets it outside keeps their choice.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
