"""Stored galleries: their versions, their order of renewal."""
