"""Where prompts and the SFT seed come from."""
