"""Bytes become samples: formats, headers, decoding, waveforms."""
