"""A complete experiment that needs no network: the standard library as the training set."""
