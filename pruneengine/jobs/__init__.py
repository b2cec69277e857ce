"""Jobs of the verbs: from a model's name to a finished folder, one file per job."""
