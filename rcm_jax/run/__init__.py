"""One run: its pipeline of stages, and what each method adds to it."""
