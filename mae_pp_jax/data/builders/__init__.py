"""TFDS builders of this package, by dataset name → module with a class `Builder`."""

BUILDERS = {"digits_hashtags": "mae_pp_jax.data.builders.digits_hashtags.digits_hashtags_dataset_builder"}
