"""The command line: flags are parsed before torch is imported."""
