"""What is merged? Folders of models, opened lazily, checked, and held against each other."""
