"""Ratios against named rivals; see README.md in this folder."""
