# SPDX-License-Identifier: Apache-2.0
"""Attention of a .tflite file."""

from __future__ import annotations

from targets.tflite_file import TfliteFile


class Attention(TfliteFile):
    """Written in terms of `value`, `store`, `shape`, `scale`, `file_shape` and the forms' `weight` and `entries`."""
