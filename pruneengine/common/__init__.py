"""Helpers that know nothing of models: files, progress, recipes, validation, optional packages."""
