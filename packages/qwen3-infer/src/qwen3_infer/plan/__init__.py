"""What a generation takes of an Ascend device, known before there is one."""
