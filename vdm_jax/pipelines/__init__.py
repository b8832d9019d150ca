"""What users call: models and cascades that sample, edit, save and load."""
