"""The library the three scripts share. Modules know no argparse and never import a script."""
