"""The replication study's parts: ablations, findings, seeds."""
