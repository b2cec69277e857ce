"""Tables that the verbs print."""
