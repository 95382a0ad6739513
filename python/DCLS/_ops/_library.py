"""The namespace ``dcls`` of torch's operators: one library for all modules that define some."""

from __future__ import annotations

import torch

library = torch.library.Library("dcls", "DEF")
