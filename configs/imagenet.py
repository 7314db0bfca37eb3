"""ImageNet-1k as the recipes on it read it: TFDS name, splits and counts; shared, not a recipe."""

RECORDS = 1_281_167
DATA = dict(name="imagenet2012", image_size=224, crop="random_resized")
# At 224 pixels MAE and timm evaluate on the centre of an image resized to 256: 0.875 of its shorter side.
EVALS = dict(val=dict(split="validation", share=0.875))
DECLARED = dict(records=RECORDS, classes=1000)
