"""Files of parameters: fetching, published folders, one name table a network."""
