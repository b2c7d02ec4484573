"""Files of every kind to records and documents."""
