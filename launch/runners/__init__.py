"""How jobs are run: here or through Slurm, and what they cost."""
