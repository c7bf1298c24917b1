"""What Twofold costs, as ratios to a bare gRPC echo measured in the same run; and, in `chaos`, what it survives."""
