"""GGUF export: tensors, tokenizer and file, and the proof that they hold the model."""
