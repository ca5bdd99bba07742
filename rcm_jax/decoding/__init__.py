"""From probabilities of slices to strata, boundaries and intervals."""
