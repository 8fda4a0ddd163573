"""Start the adaptation server: ``python serving/server.py --meta meta.pt --port 50051``."""

import sys

from metanas_serving.cli import main

if __name__ == "__main__":
    sys.exit(main())
