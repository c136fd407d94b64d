"""Large-scale image knowledge distillation (VanillaKD, arXiv 2305.15781)."""

__version__ = "0.1.0.dev0"
