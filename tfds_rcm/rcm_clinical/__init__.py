"""Any study that a manifest describes, as a TFDS dataset."""
