"""The library the three scripts share. Modules know nothing of argparse and never import a script."""
