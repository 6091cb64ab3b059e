"""``torchrun`` as a script: the command of the environment may not be on the path."""

from torch.distributed.run import main

if __name__ == "__main__":
    main()
