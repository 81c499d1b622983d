"""A query encoder and a memory of keys: predicted with, changed, saved and opened."""
