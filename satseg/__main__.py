"""``python -m satseg`` is the `satseg` command."""

import sys

from satseg.cli.main import main

sys.exit(main())
