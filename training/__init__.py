"""From point-in-time rows to a registered model. The only room that needs torch, and only to train."""
