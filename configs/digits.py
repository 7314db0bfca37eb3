"""The digits of scikit-learn, 8 × 8 pixels, and the small model for them; shared by recipes, not a recipe."""

DATA = dict(name="digits_hashtags", image_size=8, flip=False, cache="ram", threads=1)
TRAINED = dict(DATA, crop="shift", shift=1)  # where the encoder is trained
FROZEN = dict(DATA, crop="none")  # where a head is trained on its features
MODEL = dict(size="Ti/2", width=96, depth=4, heads=4)
