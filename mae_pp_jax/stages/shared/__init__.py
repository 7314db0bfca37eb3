"""What several stages share: data and pixels of stages on images, features of a frozen encoder, a saved run's encoder."""
