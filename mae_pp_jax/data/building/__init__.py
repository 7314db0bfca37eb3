"""`data build`: tagged images in folders, tars, tables or records become a TFDS dataset, in parts made anywhere.

The path of an image: a reader (sidecar, folders, tars, parquet, records) gives `items.Item`s; `splitting` says which
split each belongs to; `encoding` checks and encodes it; `parts` writes it; `build` runs all parts on Apache Beam and
puts the dataset together. Nothing depends on the order or place in which parts are made, so the same input gives the
same bytes.
"""
