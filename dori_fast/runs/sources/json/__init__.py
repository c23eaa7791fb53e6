"""Whole JSON documents: arrays of rows, and the captions of COCO."""
