"""``python -m loragen_train.cli``."""

import sys

from loragen_train.cli.main import main

sys.exit(main())
