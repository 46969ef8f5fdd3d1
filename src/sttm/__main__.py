"""`python -m sttm`, and `torchrun --nproc-per-node 8 -m sttm train CONFIG`."""

from sttm.cli import main

if __name__ == "__main__":
    main()
