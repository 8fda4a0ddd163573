"""What a client does unless it is told otherwise."""

# An Adapt that takes 20 s alone takes minutes on a machine that is busy with other things.
DEFAULT_TIMEOUT_SECONDS = 300.0
# 20 classes of 5 colour images at 84 px are 8.5 MB as float32, over gRPC's own limit of 4 MB.
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
