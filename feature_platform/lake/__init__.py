"""The lake: bars and feature views as Delta tables, for engines that read whole histories."""
