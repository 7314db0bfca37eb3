"""Public weight files ⇄ our parameters: files, tables of names, conversion, and the releases."""
