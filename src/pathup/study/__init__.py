"""The blinded reader study (table 5), in a browser, and the slide viewer."""
