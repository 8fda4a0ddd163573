"""Turn ``task_model.pt`` into ONNX and a TensorRT plan: ``python export/to_tensorrt.py --help``."""

import sys

from metanas_export.cli import main

if __name__ == "__main__":
    sys.exit(main(formats=("onnx", "tensorrt")))
