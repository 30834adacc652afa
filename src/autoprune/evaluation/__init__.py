"""What a model is worth: perplexity, tasks, and an audit that trusts only the written files."""
