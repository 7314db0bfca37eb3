"""Classifiers on frozen features: pure functions of arrays, float [images, width], and labels, int [images]."""
