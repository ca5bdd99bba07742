"""PyTorch's side of the first day's comparisons; each runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable


def inception(batch: int, side: int) -> Callable[[], None]:
  """Inception-V3 of torchvision, compiled, channels last, bfloat16; uint8 images on the device."""
  import torch
  from torchvision.models import inception_v3

  device = "cuda" if torch.cuda.is_available() else "cpu"
  dtype = torch.bfloat16 if device == "cuda" else torch.float32
  model = inception_v3(weights=None, init_weights=False, aux_logits=False)
  model.fc = torch.nn.Linear(model.fc.in_features, 256)
  model = model.eval().to(device, dtype, memory_format=torch.channels_last)
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
