from autounet.cli import main

main()
