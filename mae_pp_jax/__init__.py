"""MAE pre-pretraining, weakly supervised pretraining and transfer of Vision Transformers in JAX."""

__version__ = "0.1.0"
