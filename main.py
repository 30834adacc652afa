"""The classic entry point: `python main.py --model MODEL --prune_method wanda --sparsity_ratio 0.5 …`; see README."""

import sys

from autoprune.cli.main import classic

if __name__ == "__main__":
    sys.exit(classic())
