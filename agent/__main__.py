"""python -m agent"""

from agent.commands.app import main

main()
