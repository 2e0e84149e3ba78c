"""The systems that PathUp is compared with, each trained on the same tiles and drawn from by one interface."""
