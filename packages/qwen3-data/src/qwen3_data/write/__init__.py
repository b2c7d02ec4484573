"""Token ids to files, in a folder that an interrupted run goes on in."""
