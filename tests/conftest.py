"""Settings for every test: two threads, as the machines that run them have two cores."""

import torch

torch.set_num_threads(2)
