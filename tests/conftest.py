"""Settings for every test: one thread, since small tensors gain nothing from more and lose on a busy machine."""

import torch

torch.set_num_threads(1)
