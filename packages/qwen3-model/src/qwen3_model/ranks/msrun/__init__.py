"""Several processes of one command through MindSpore's msrun: checked first, watched, none left behind."""
