"""From prepared records to slices in memory, batches and features."""
