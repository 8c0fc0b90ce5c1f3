"""Detectors of hallucinated answers, all behind one protocol (`base.Detector`)."""
