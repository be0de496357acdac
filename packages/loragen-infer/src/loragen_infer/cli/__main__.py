"""``python -m loragen_infer.cli``."""

import sys

from loragen_infer.cli.main import main

sys.exit(main())
