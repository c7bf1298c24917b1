"""Messages of the contract ↔ values of the domain, one module per noun; validates while it reads; pure."""
