"""Systems that the papers' tables compare with: one file each, models like any other."""
