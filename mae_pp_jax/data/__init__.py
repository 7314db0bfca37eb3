"""Images, labels and hashtags: from a dataset's name or a folder to batches that depend on (seed, step) alone."""
