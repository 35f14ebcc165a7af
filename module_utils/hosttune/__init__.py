"""The engine that reads, judges, applies and undoes a host's settings.

Plain Python, standard library only, 3.9 to 3.13; runs on the managed host, where Ansible ships the files
that a module imports.
"""

__version__ = "0.1.0"
