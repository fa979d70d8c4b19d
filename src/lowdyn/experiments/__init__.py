"""Experiments: settings at three scales and a function that makes a trajectory of them; no files, no pictures."""
