"""Processes that verbs start: those that train the stages of a pipeline, and the one in which `plan` compiles."""
