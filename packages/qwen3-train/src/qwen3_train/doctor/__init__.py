"""The `doctor` command: is this machine ready?"""
