"""What every stage stands on: files, digests, devices, the command line."""
