"""The pipeline: one module a stage, and what several stages share."""

import gc
import os
import sys

# How long a thread of GNU OpenMP, which torch uses on Linux, spins for work before it sleeps. A
# training step of spgnet-r18-spg on two cores took, by median, 0.28 s with the library's own 300 000
# turns, 0.28 s with 10 000 and 0.43 s with none; beside one busy process 2.0, 0.9 and 0.6 s. Read once,
# when torch is imported; whoever sets it outside keeps their choice.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Imports make some hundred thousand objects that stay, and the garbage collector looks through all of
# them again and again, at exit too: 1.4 of the 3.9 s of processor time that a stage takes to start
# and end. ``command.run`` switches it on again. "-m" stands there while python -m looks for a stage;
# whoever imports this package for themselves keeps their collector.
if sys.argv[:1] == ["-m"]:
    gc.disable()
