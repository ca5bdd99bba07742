"""What every stage runs on: files, cache, checkpoints, devices, requests to stop, metrics."""
