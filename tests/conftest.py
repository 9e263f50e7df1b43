"""Settings for every test: one thread, since small tensors gain nothing from more, and tests run in several processes."""

import os

import torch

# For the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
