"""python -m edge_sdk"""

from edge_sdk.commands.app import main

main()
