from pruneengine.cli import main

main()
