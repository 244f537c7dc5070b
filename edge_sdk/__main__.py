"""python -m edge_sdk"""

from edge_sdk.cli import main

main()
