"""The dataset `digits_hashtags`: scanned digits with simulated hashtags."""
