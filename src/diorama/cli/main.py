"""The `diorama` command."""

import sys


def main() -> int:
    """Run the verb named by the first argument and give its exit code."""
    print(f"diorama: unknown command {sys.argv[1:]}", file=sys.stderr)
    return 2
