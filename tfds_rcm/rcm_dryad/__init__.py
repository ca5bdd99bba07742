"""The public study of Hames et al. 2016 (doi:10.5061/dryad.rg58m) as a TFDS dataset."""
