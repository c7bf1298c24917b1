"""Other libraries that keep conversations, each in an environment of its own, against Twofold through gRPC (P11)."""
