"""The seam between the network and a device: portable operators and Ascend's, with one interface."""
