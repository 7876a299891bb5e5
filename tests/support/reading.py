"""Writes settings as a dictionary: `python -m tests.support.reading NAME …`."""

import sys

from service import settings

if __name__ == "__main__":
    sys.stdout.write(repr({name: getattr(settings, name) for name in sys.argv[1:]}))
