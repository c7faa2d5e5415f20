"""The speeds that are promised, each measured beside what it is compared with."""
