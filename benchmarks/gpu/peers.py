"""PyTorch's side of the first day's comparisons; each runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable


def inception(batch: int, side: int) -> Callable[[], None]:
  """Inception-V3 of torchvision, or of timm, compiled, channels last, bfloat16; uint8 images on the device."""
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = torch.bfloat16 if device == "cuda" else torch.float32
  model = _network(torch).eval().to(device, dtype, memory_format=torch.channels_last)
  images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)

  @torch.compile
  def run(images):
    x = (images.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    return model(x)

  def call():
    with torch.inference_mode():
      run(images)
      if device == "cuda":
        torch.cuda.synchronize()

  return call


def _network(torch):
  try:
    from torchvision.models import inception_v3
  except ModuleNotFoundError:
    import timm

    return timm.create_model("inception_v3", num_classes=256)
  network = inception_v3(weights=None, init_weights=False, aux_logits=False)
  network.fc = torch.nn.Linear(network.fc.in_features, 256)
  return network
