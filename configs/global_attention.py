"""Global attention over the whole stack, with a GRU decoder that is fed its last class.

    python -m rcm_jax.main --config=configs/global_attention.py --workdir=runs/global_attention

About 3 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 5 seeds): 88.2 % accuracy and 3 impossible transitions. The paper, on its own stacks:
86.27 % and 0.

The paper computes the weights "by a multi-layer perceptron from h_n" and cites Bahdanau et al.: the
default is their additive score; the literal reading is --config.head.attention=location. The paper
does not say what the decoder is fed in training: here its own probabilities, or
--config.head.feedback=teacher, scheduled or none.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, additive attention and a GRU decoder."""
  config = base.get_config(preset)
  config.name = "global_attention"
  config.head.attention = "additive"  # or location
  config.head.decoder = "gru"
  config.head.feedback = "own"
  return config
