"""`python -m metanas_client` is `metanas-client`."""

import sys

from metanas_client.cli import main

sys.exit(main())
