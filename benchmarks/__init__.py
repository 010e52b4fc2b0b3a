"""Measurements: speed of decoding and of training beside other libraries, and what training achieves."""
