"""What the verbs run: from a model's name to a finished folder, a job a file."""
