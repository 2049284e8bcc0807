# SPDX-License-Identifier: Apache-2.0
"""Norm, LSTM, lookup and table of a .tflite file."""

from __future__ import annotations

from targets.tflite_file import TfliteFile


class Modules(TfliteFile):
    """Written in terms of `value`, `store`, `shape`, `scale`, `file_shape` and the forms' `weight` and `entries`."""
