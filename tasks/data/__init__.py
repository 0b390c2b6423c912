"""Prompt sets, demonstrations and recorded labels as cached stages."""
