"""What a user asks for: options, recipe, protocols. Imports no torch."""
