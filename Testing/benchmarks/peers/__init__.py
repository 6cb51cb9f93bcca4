"""Other engines, each run as a worker process of an environment of their own.

`environment` installs them, `views` says our camera and pose in their numbers, `client` talks to a worker. `worker` and
the modules named after an engine run in the peers' environment, which has neither DiffDRRCore nor its packages.
"""
