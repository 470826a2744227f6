"""Engines that generate answers, behind one port."""
