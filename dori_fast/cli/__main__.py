from dori_fast.cli import main

main()
