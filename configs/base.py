"""What all methods share, as the paper trains them; every choice of ours is marked.

Presets, given behind a colon (`--config=configs/toeplitz_d1.py:paper`):
  demo         the small phantom and a quarter-width CNN: minutes on two CPU cores (default)
  paper_small  504 phantom stacks of 80 px on a field of 192 µm, quarter-width CNN: two CPU cores
  paper        504 phantom stacks of 299 px on 500 µm and the full Inception-V3: an accelerator

Tuples under `head` make one member an entry and combination, all trained in one program.
"""

import ml_collections
from ml_collections import config_dict

PRESETS = ("demo", "paper_small", "paper")


def get_config(preset: str = "demo") -> ml_collections.ConfigDict:
  """Returns the configuration that every method starts from."""
  if preset not in PRESETS:
    raise ValueError(f"no preset '{preset}'; known are {', '.join(PRESETS)}")
  demo, small = preset == "demo", preset != "paper"
  config = ml_collections.ConfigDict()
  config.name = ""  # name of the row
  config.pipeline = "head"  # head, views, end_to_end, cnn, features, hames, kaur or depth_prior
  config.seeds = (0, 1, 2)  # members of sequence heads; baselines run once each

  # A model of ours (a run's work directory, or its folder model) that CNN and heads start from, seed by
  # seed. The CNN is then fine-tuned as from a file of ImageNet weights.
  config.init = config_dict.placeholder(str)

  # Of float32 products on a GPU: highest, high (3 × TF32) or default (TF32, 11 bits). The CNN's are bfloat16.
  config.precision = "highest"

  config.data = ml_collections.ConfigDict()
  config.data.sources = (f"rcm_phantom/{preset}",)  # TFDS names, mixed in each split
  config.data.data_dir = config_dict.placeholder(str)  # where TFDS keeps them; its default if None
  config.data.test_sources = ()  # the same, whose test split is used instead
  config.data.train_stacks = config_dict.placeholder(int)  # how many are trained on; None: all
  config.data.strata = 3  # the paper's; 4: stratum corneum apart from the viable epidermis
  config.data.image_size = config_dict.placeholder(int)  # px a side; None: as they are
  # µm a side that the model sees; None: the field that all stacks have, or none knows
  config.data.field_um = config_dict.placeholder(float)
  config.data.train_tiles = 1  # most tiles a side that training cuts larger fields into

  config.cnn = ml_collections.ConfigDict()
  config.cnn.seed = 0
  config.cnn.context = 1  # slices seen at once; 3 in IV3-Context
  config.cnn.width = 0.25 if small else 1.0  # factor on Inception-V3's channels
  config.cnn.pretrained = config_dict.placeholder(str)  # file of ImageNet weights
  # Whether average pooling counts the zeros around the image; None: as the library of that file
  # does (torchvision does; Keras, TensorFlow and a new network do not). pytorch-fid's file: False.
  config.cnn.count_include_pad = config_dict.placeholder(bool)
  # Only with such a file, or with config.init, for fine-tuning:
  config.cnn.pretrained_input = "symmetric"  # its images: [−1, 1], or imagenet (mean, deviation)
  config.cnn.frozen_epochs = 1  # in which only the new layers learn
  config.cnn.body_rate = 0.1  # the other layers' share of the learning rate afterwards
  # The paper gives none of the following.
  config.cnn.epochs = 16 if small else 30
  config.cnn.batch_size = 32
  # Groups of a batch with statistics of their own; devices divide it. 8 for as many GPUs.
  config.cnn.norm_groups = 1 if small else 8
  config.cnn.learning_rate = 2e-3 if small else 1e-3  # Adam, one warm-up epoch, cosine decay
  config.cnn.dropout = 0.2
  config.cnn.bn_momentum = 0.9 if demo else 0.99  # Keras' 0.99 needs hundreds of steps

  config.augmentation = ml_collections.ConfigDict()  # operations from the paper, ranges ours
  config.augmentation.rotate_degrees = 180.0
  config.augmentation.shear = 0.15
  config.augmentation.zoom = 1.3
  config.augmentation.stretch = 1.15
  config.augmentation.flip = True
  config.augmentation.resampled = 0.5  # share of views that are more than flipped
  config.augmentation.photometry = ml_collections.ConfigDict()  # ours: other instruments
  config.augmentation.photometry.share = 0.0  # of views whose gray levels change; the paper: none
  config.augmentation.photometry.gain = 1.5
  config.augmentation.photometry.gamma = 1.3
  config.augmentation.photometry.shading = 0.5
  config.augmentation.photometry.blur_px = 0.8
  config.augmentation.photometry.speckle = 0.3
  config.augmentation.photometry.noise = 12.0

  config.features = ml_collections.ConfigDict()
  config.features.batch_size = 64
  config.features.dtype = "float32"  # or float16
  # What computes features of images: xla, or onnxruntime, which is faster on CPUs (pip install onnx onnxruntime).
  config.features.engine = "xla"
  # Features of training and validation that need more than this as float32, in 10⁹ bytes, stay on disk and are
  # read while heads train on them. Results are the same but for rounding.
  config.features.memory_gb = 8.0
  config.features.file = config_dict.placeholder(str)  # of configs/features.py, instead of images

  config.head = ml_collections.ConfigDict()
  config.head.hidden = 64
  config.head.cell = "gru"  # gru, rnn, lstm
  config.head.bidirectional = True
  # An LSTM's forget gates start at this bias; ours: Keras starts them at 1.
  config.head.forget_bias = 0.0
  # Slices around each slice; None: the stack. Ours: a batch has all windows of `batch_size` stacks,
  # with one dropout mask a stack, where the paper may have drawn its sub-sequences one by one.
  config.head.window = config_dict.placeholder(int)
  config.head.attention = "none"  # none, toeplitz, additive, location
  config.head.half_widths = (0,)  # D of Toeplitz attention
  config.head.edge_mode = "zero"  # as the paper; or renormalize
  config.head.units = 64  # of global attention's perceptron; ours
  config.head.decoder = "dense"  # or gru
  config.head.feedback = (
    "none"  # none, own, teacher, scheduled; the paper does not say how it trains
  )
  config.head.likelihood = (
    "slices"  # or boundaries: the monotone model, see rcm_jax/decoding/monotone_model.py
  )
  config.head.mae_weights = (0.0,)  # of the expected boundary error, per µm; with boundaries only
  # The paper's T. Longer stacks are cut in training, and where validation chooses the epoch. What is
  # reported of validation and test stacks is of all their slices, unless attention is by location,
  # which has no score for more.
  config.head.max_slices = 71
  config.head.epochs = 200
  config.head.batch_size = 4
  config.head.learning_rates = (1e-3,)  # Adam; the paper names no optimiser
  # On the recurrent connections; ours: one mask a stack and direction, for all its steps and gates.
  config.head.dropouts = (0.1,)
  config.head.pca_components = config_dict.placeholder(int)  # ours: of the features; None: all 256
  config.head.input_dropout = 0.0  # ours: share of the features hidden from a stack in training
  config.head.shortest_crop = (
    1.0  # ours: share of a stack's slices that training's crops keep at least
  )
  config.head.ema_decay = 0.0  # ours: decay a step of the weights' running average; 0: none
  # The paper has L1 of 0.05 on the recurrent weights. Keras, which it does not name, adds them all
  # up (sum), 12,288 a direction; ours is the mean of a direction, which weighs 12,288 times less.
  config.head.l1s = (0.05,)
  config.head.l1_reduction = "mean"  # or sum
  return config
